/* What blocks.c and tile_attention.c share: bfloat16 and 2^x in registers, and the shapes of tile registers. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
#define INLINE static inline __attribute__((always_inline))

#define LOG2_E 1.44269504f

INLINE __m512 wide16(const bf16 *from) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
}

/* 2^x to a relative 1e-4, which is a fortieth of bfloat16's rounding; 2^-120 below that. What is no number stays so. The
 * polynomial is 2^f's for f of -1/2 to 1/2, its largest relative error made least. */
INLINE __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-120.0f), x);
    __m512 n = _mm512_roundscale_ps(x, 0), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.05516788f), f, _mm512_set1_ps(0.24260202f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69326081f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992869f)), n);
}

#ifdef __AMX_TILE__
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_a_row[16];
    uint8_t rows[16];
} Shapes;

/* Tiles 0 to 3 for sums, 4 and 5 for up to 32 rows of the left factor, 6 and 7 for the right one. */
INLINE void shape_tiles(long rows) {
    uint8_t low = rows > 16 ? 16 : rows, high = rows > 16 ? rows - 16 : 1;
    Shapes shapes = {.palette = 1, .rows = {low, low, high, high, low, high, 16, 16}};
    for (int tile = 0; tile < 8; tile++) shapes.bytes_a_row[tile] = 64;
    _tile_loadconfig(&shapes);
}
#endif
