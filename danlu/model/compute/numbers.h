/* bfloat16 and e^x in plain C, which a compiler vectorizes for whatever processor there is. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
#define INLINE static inline __attribute__((always_inline))

INLINE float wide(bf16 x) {
    union { uint32_t bits; float value; } both = {(uint32_t)x << 16};
    return both.value;
}

/* To the nearest, ties to even; what is not a number stays so. */
INLINE bf16 narrow(float x) {
    union { float value; uint32_t bits; } both = {x};
    uint32_t rounded = (both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16;
    return (both.bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

/* One of many numbers: float32 where is_wide, else bfloat16. */
INLINE float number(const void *from, long at, int is_wide) {
    return is_wide ? ((const float *)from)[at] : wide(((const bf16 *)from)[at]);
}

INLINE void put_number(void *to, long at, float x, int is_wide) {
    if (is_wide) ((float *)to)[at] = x;
    else ((bf16 *)to)[at] = narrow(x);
}

/* e^x to 2 ulp (Cephes' polynomial), 0 below -87. */
INLINE float exponential(float x) {
    float inside = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float n = floorf(inside * 1.44269504f + 0.5f);
    float r = inside - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    float result = (p * r * r + r + 1.0f) * power.value;
    return x < -87.0f ? 0.0f : result;
}
