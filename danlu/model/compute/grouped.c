/* Products with weights in few bits by groups, and those weights whole again: grouped_linear.py says which.
 *
 * Codes lie as the kernel reads them. Of 4 bits, 32 inputs are 16 bytes: the first 16 in the low halves, the others in
 * the high ones. Of 8 bits, a byte is an input. A weight is (code - zero) * scale in float32, with its group's numbers;
 * a group is a multiple of 32 inputs. Plain C that a compiler vectorizes; threads are those of torch's OpenMP.
 */
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define CHUNK 32
#define LANES 16
#define ROWS 4 /* of x, for which a code is taken apart once */

/* Vectors of gcc and clang, which make of them what the processor has. */
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t numbers __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

/* By one step more where all 8 bits count: gcc 12 takes bytes that it has just loaded one by one otherwise. */
INLINE floats floats_of(bytes codes, int bits) {
    numbers wide = bits == 4 ? __builtin_convertvector(codes, numbers)
                             : __builtin_convertvector(__builtin_convertvector(codes, shorts), numbers);
    return __builtin_convertvector(wide, floats);
}

/* To the nearest, ties to even; weights are finite. */
INLINE shorts narrow(floats x) {
    words bits = (words)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, shorts);
}

/* 32 codes less their zero, in float32: the first 16 and the others. */
INLINE void apart(const uint8_t *codes, int bits, float zero, floats *low, floats *high) {
    bytes first, second;
    __builtin_memcpy(&first, codes, LANES);
    if (bits == 4) {
        second = first >> 4;
        first &= 15;
    } else {
        __builtin_memcpy(&second, codes + LANES, LANES);
    }
    *low = floats_of(first, bits) - zero;
    *high = floats_of(second, bits) - zero;
}

/* One output for `rows` rows of x. */
INLINE void one(const float *x, const uint8_t *codes, const float *scales, const float *zeros, float *out, int rows,
                long inputs, long group, int bits, long outputs, float bias) {
    floats sums[ROWS];
    for (int row = 0; row < rows; row++) sums[row] = (floats){0};
    long step = bits == 4 ? CHUNK / 2 : CHUNK;
    for (long first = 0, number = 0; first < inputs; first += group, number++) {
        floats parts[ROWS];
        for (int row = 0; row < rows; row++) parts[row] = (floats){0};
        for (long at = first; at < first + group; at += CHUNK) {
            floats low, high;
            apart(codes + at / CHUNK * step, bits, zeros[number], &low, &high);
            for (int row = 0; row < rows; row++) {
                const float *from = x + row * inputs + at;
                parts[row] += low * *(const floats *)from;
                parts[row] += high * *(const floats *)(from + LANES);
            }
        }
        for (int row = 0; row < rows; row++) sums[row] += parts[row] * scales[number];
    }
    for (int row = 0; row < rows; row++) {
        float sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += sums[row][lane];
        out[row * outputs] = sum + bias;
    }
}

/* out = x W^T + bias: x (rows, inputs), codes (outputs, ...), scales and zeros (outputs, inputs / group). */
void danlu_grouped(const float *x, const uint8_t *codes, const float *scales, const float *zeros, const float *bias,
                   float *out, long rows, long outputs, long inputs, long group, int bits, int threads) {
    long stride = bits == 4 ? inputs / 2 : inputs, groups = inputs / group;
#pragma omp parallel for num_threads(threads) if (outputs * inputs > 65536)
    for (long o = 0; o < outputs; o++) {
        const uint8_t *row_codes = codes + o * stride;
        const float *s = scales + o * groups, *z = zeros + o * groups;
        float b = bias ? bias[o] : 0.0f;
        for (long row = 0; row < rows; row += ROWS) {
            const float *from = x + row * inputs;
            float *to = out + row * outputs + o;
            int left = (int)(rows - row);
            if (bits == 4) {
                if (left >= ROWS) one(from, row_codes, s, z, to, ROWS, inputs, group, 4, outputs, b);
                else if (left == 3) one(from, row_codes, s, z, to, 3, inputs, group, 4, outputs, b);
                else if (left == 2) one(from, row_codes, s, z, to, 2, inputs, group, 4, outputs, b);
                else one(from, row_codes, s, z, to, 1, inputs, group, 4, outputs, b);
            } else {
                if (left >= ROWS) one(from, row_codes, s, z, to, ROWS, inputs, group, 8, outputs, b);
                else if (left == 3) one(from, row_codes, s, z, to, 3, inputs, group, 8, outputs, b);
                else if (left == 2) one(from, row_codes, s, z, to, 2, inputs, group, 8, outputs, b);
                else one(from, row_codes, s, z, to, 1, inputs, group, 8, outputs, b);
            }
        }
    }
}

/* W itself (outputs, inputs): as float32, or rounded to bfloat16. */
void danlu_grouped_whole(const uint8_t *codes, const float *scales, const float *zeros, void *out, long outputs,
                         long inputs, long group, int bits, int is_short, int threads) {
    long step = bits == 4 ? CHUNK / 2 : CHUNK, groups = inputs / group;
#pragma omp parallel for num_threads(threads) if (outputs * inputs > 65536)
    for (long o = 0; o < outputs; o++) {
        for (long at = 0; at < inputs; at += CHUNK) {
            floats w[2];
            float scale = scales[o * groups + at / group];
            apart(codes + (o * inputs + at) / CHUNK * step, bits, zeros[o * groups + at / group], w, w + 1);
            w[0] *= scale;
            w[1] *= scale;
            if (is_short) {
                shorts *to = (shorts *)((uint16_t *)out + o * inputs + at);
                to[0] = narrow(w[0]);
                to[1] = narrow(w[1]);
            } else {
                floats *to = (floats *)((float *)out + o * inputs + at);
                to[0] = w[0];
                to[1] = w[1];
            }
        }
    }
}
