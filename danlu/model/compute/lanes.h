/* A vector of floats, whatever registers the processor has: 16 of AVX-512, 8 of AVX2, 4 of NEON or of any other. */
#include "numbers.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define HAS_MANY 1 /* registers enough for a dozen sums and what they are made of */
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LANES 8
#define HAS_MANY 1
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define LANES 4
#define HAS_MANY 1
#else
#define LANES 4
#define HAS_MANY 0
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));
typedef uint16_t ushorts __attribute__((vector_size(2 * LANES), may_alias, aligned(2)));

INLINE lanes spread(float x) {
#if LANES == 16
    return (lanes)_mm512_set1_ps(x);
#elif LANES == 8
    return (lanes)_mm256_set1_ps(x);
#else
    return (lanes){x, x, x, x};
#endif
}

/* a b + c: rounded once where the processor can. */
INLINE lanes fused(lanes a, lanes b, lanes c) {
#if LANES == 16
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (lanes)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE lanes widened(ushorts x) { return (lanes)(__builtin_convertvector(x, ints) << 16); }

INLINE lanes wide_lanes(const bf16 *from) { return widened(*(const ushorts *)from); }

/* Neighbours among many numbers, from `at` on: float32 where is_wide, else bfloat16. */
INLINE lanes lanes_at(const void *from, long at, int is_wide) {
    return is_wide ? *(const lanes *)((const float *)from + at) : wide_lanes((const bf16 *)from + at);
}

INLINE lanes each_larger(lanes a, lanes b) {
    const ints is_larger = a > b;
    return (lanes)(((ints)a & is_larger) | ((ints)b & ~is_larger));
}

INLINE float largest_of(lanes x) {
#if LANES == 16
    return _mm512_reduce_max_ps((__m512)x);
#else
    float most = x[0];
    for (int lane = 1; lane < LANES; lane++) most = x[lane] > most ? x[lane] : most;
    return most;
#endif
}

INLINE float total(lanes x) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
#endif
}

/* e^x for x up to 0, as `exponential` has it; what is not a number stays so. */
INLINE lanes raised_to(lanes x) {
    const ints is_low = x < spread(-87.0f);
    const lanes inside = (lanes)(((ints)x & ~is_low) | ((ints)spread(-87.0f) & is_low)), most = spread(12582912.0f);
    const lanes shifted = fused(inside, spread(1.44269504f), most), n = shifted - most; /* a whole number */
    const lanes r = fused(n, spread(2.12194440e-4f), fused(n, spread(-0.693359375f), inside));
    lanes p = fused(spread(1.9875691500e-4f), r, spread(1.3981999507e-3f));
    p = fused(p, r, spread(8.3334519073e-3f));
    p = fused(p, r, spread(4.1665795894e-2f));
    p = fused(p, r, spread(1.6666665459e-1f));
    p = fused(p, r, spread(5.0000001201e-1f));
    const ints power = ((ints)shifted - 0x4b400000 + 127) << 23;
    return (lanes)((ints)((fused(p * r, r, r) + 1.0f) * (lanes)power) & ~is_low);
}

/* To the nearest, as `narrow` has it, but for what is below 1e-38, which some processors let be 0. */
INLINE ushorts narrow_lanes(lanes x) {
#ifdef __AVX512BF16__
    return (ushorts)_mm512_cvtneps_pbh((__m512)x);
#else
    const ints bits = (ints)x, is_none = x != x;
    const ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector((rounded & ~is_none) | (is_none & 0x7fc0), ushorts);
#endif
}

/* Neighbours to among many numbers, from `at` on. */
INLINE void put_lanes(void *to, long at, lanes x, int is_wide) {
    if (is_wide) *(lanes *)((float *)to + at) = x;
    else *(ushorts *)((bf16 *)to + at) = narrow_lanes(x);
}

/* x sigmoid(x). */
INLINE lanes silu(lanes x) {
    const ints is_low = x < (lanes){0};
    const lanes small = raised_to((lanes)((ints)x | (int)0x80000000)), one = spread(1.0f);
    const lanes above = (lanes)(((ints)small & is_low) | ((ints)one & ~is_low));
    return x * above / (one + small);
}

#if LANES == 16
#define LOG2_E 1.44269504f

/* 2^x to a relative 1e-4, which is a fortieth of bfloat16's rounding; 2^-120 below that. What is no number stays so. The
 * polynomial is 2^f's for f of -1/2 to 1/2, its largest relative error made least. */
INLINE __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-120.0f), x);
    __m512 n = _mm512_roundscale_ps(x, 0), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.05516788f), f, _mm512_set1_ps(0.24260202f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69326081f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992869f)), n);
}
#endif

/* silu(gate) * up, to what float32 holds where is_wide, else to what bfloat16 does. */
INLINE lanes gated(lanes gate, lanes up, int is_wide) {
    lanes open = silu(gate);
#if LANES == 16
    if (!is_wide) {
        const __m512 power = power_of_two(_mm512_mul_ps((__m512)gate, _mm512_set1_ps(-LOG2_E)));
        open = gate * (lanes)_mm512_rcp14_ps(_mm512_add_ps(power, _mm512_set1_ps(1.0f)));
        asm("" : "+v"(open)); /* or a compiler that may reorder products would have another than one that may not */
    }
#endif
    return open * up;
}

/* As many vectors as one has numbers: rows become columns. Blocks of half the size are exchanged, then of a quarter. */
#define EXCHANGE(X, SIZE, LOW, HIGH)                                                                                    \
    for (int at = 0; at < LANES; at++)                                                                                  \
        if (!(at & SIZE)) {                                                                                             \
            const lanes one = X[at], other = X[at + SIZE];                                                              \
            X[at] = __builtin_shufflevector(one, other, LOW);                                                           \
            X[at + SIZE] = __builtin_shufflevector(one, other, HIGH);                                                   \
        }
#define TWO(A) A, A + 1
#define FOUR(A) TWO(A), TWO(A + 2)
#define EIGHT(A) FOUR(A), FOUR(A + 4)
#define ONES(A, B) A, B, A + 2, B + 2
#define TWOS(A, B) TWO(A), TWO(B), TWO(A + 4), TWO(B + 4)
#define FOURS(A, B) FOUR(A), FOUR(B), FOUR(A + 8), FOUR(B + 8)
INLINE void transpose(lanes *x) {
#if LANES == 16
#define ONES8(A, B) ONES(A, B), ONES(A + 4, B + 4)
#define ONES16(A, B) ONES8(A, B), ONES8(A + 8, B + 8)
#define TWOS16(A, B) TWOS(A, B), TWOS(A + 8, B + 8)
#define LOW8 EIGHT(0), EIGHT(16)
#define HIGH8 EIGHT(8), EIGHT(24)
#pragma GCC unroll 16
    EXCHANGE(x, 8, LOW8, HIGH8)
#pragma GCC unroll 16
    EXCHANGE(x, 4, FOURS(0, 16), FOURS(4, 20))
#pragma GCC unroll 16
    EXCHANGE(x, 2, TWOS16(0, 16), TWOS16(2, 18))
#pragma GCC unroll 16
    EXCHANGE(x, 1, ONES16(0, 16), ONES16(1, 17))
#elif LANES == 8
#define ONES8(A, B) ONES(A, B), ONES(A + 4, B + 4)
#define LOW4 FOUR(0), FOUR(8)
#define HIGH4 FOUR(4), FOUR(12)
#pragma GCC unroll 8
    EXCHANGE(x, 4, LOW4, HIGH4)
#pragma GCC unroll 8
    EXCHANGE(x, 2, TWOS(0, 8), TWOS(2, 10))
#pragma GCC unroll 8
    EXCHANGE(x, 1, ONES8(0, 8), ONES8(1, 9))
#else
#define LOW2 TWO(0), TWO(4)
#define HIGH2 TWO(2), TWO(6)
#pragma GCC unroll 4
    EXCHANGE(x, 2, LOW2, HIGH2)
#pragma GCC unroll 4
    EXCHANGE(x, 1, ONES(0, 4), ONES(1, 5))
#endif
}
