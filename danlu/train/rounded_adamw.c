/* One step of AdamW on weights and means that are held in bfloat16 alone: computed in float32, rounded by chance. */
#include <math.h>
#include <stdint.h>

typedef uint16_t bf16;

static inline float wide(bf16 x) {
    union { uint32_t bits; float value; } both = {(uint32_t)x << 16};
    return both.value;
}

/* 32 bits that look drawn, of a number (C. Wellons, lowbias32). */
static inline uint32_t mixed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* Up as often as x is nearer to what lies there. */
static inline bf16 rounded(float x, uint32_t chance) {
    union { float value; uint32_t bits; } both = {x};
    uint32_t more = (both.bits & 0x7f800000u) == 0x7f800000u ? 0 : chance & 0xffff;
    return (bf16)((both.bits + more) >> 16);
}

void danlu_rounded_adamw(bf16 *weight, const bf16 *grad, bf16 *mean, bf16 *square, long size, uint32_t key, float rate,
                         float decay, float beta1, float beta2, float first, float second, float epsilon, int threads) {
#pragma omp parallel for simd num_threads(threads) if (size > 65536)
    for (long at = 0; at < size; at++) {
        uint32_t one = mixed((uint32_t)at ^ key), other = mixed(one ^ 0x9e3779b9u);
        float g = wide(grad[at]), m = beta1 * wide(mean[at]) + (1 - beta1) * g;
        float v = beta2 * wide(square[at]) + (1 - beta2) * g * g;
        float w = wide(weight[at]) * (1 - rate * decay) - rate * (m / first) / (sqrtf(v / second) + epsilon);
        weight[at] = rounded(w, one);
        mean[at] = rounded(m, one >> 16);
        square[at] = rounded(v, other);
    }
}
