/* What blocks.c and tile_attention.c share: bfloat16 in registers, and the shapes of tile registers. */
#include "lanes.h"

INLINE __m512 wide16(const bf16 *from) { return (__m512)wide_lanes(from); }

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
