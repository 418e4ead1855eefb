/* Products x W^T in bfloat16, of weights in bfloat16, int8, int4 and codes by groups: on the processor's tile registers (AMX), or by products
 * of pairs in vectors (AVX-512-BF16).
 *
 * A step of a few rows does little but read weights: they lie in the order in which they are read, and int8 and int4 are
 * widened to bfloat16 on their way. The same loops serve prompts of thousands of tokens. blocks.py packs the weights and
 * calls.
 */
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__linux__)
#include "tiles.h"
#include <sys/syscall.h>
#include <unistd.h>

enum { BF16, INT8, INT4, CODES4 = 4, CODES8 }; /* what is between is that of floats.c */

#define CHUNK 1024 /* bfloat16 weights of 32 outputs and 32 inputs */
#define ALIKE 2048 /* inputs: rows so many apart lie in the same lines of a first cache, which has not room for a dozen */
#define AHEAD 4096 /* bytes that are fetched before they are widened */

/* One layer. Its outputs come in blocks of 32, a block's inputs in chunks of 32, a chunk as two tiles of 16 outputs: 16
 * pairs of inputs x 16 outputs x 2, which is how both kinds of registers want them. */
typedef struct {
    const char *weights;
    const void *scales; /* int8: float (outputs, whole blocks); int4: bfloat16 (blocks, chunks, 2 tiles, step and middle, 16);
                           codes: float (blocks, groups, 2 tiles, scale and zero, 16), a group being of `together` chunks */
    const float *bias;  /* (outputs, whole blocks), or NULL */
    long outputs, inputs;
    int is_paired;      /* a block's second tile has outputs of the second half: what it is multiplied with when gated */
    long stride;        /* numbers from one row of x to the next */
    long together;
} Layer;

/* A pair of inputs in 8 bits, for 16 outputs. */
INLINE __m512i open8(const char *from) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + 16))));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

INLINE void widen8(const char *from, bf16 *to) {
    for (int pair = 0; pair < 16; pair++) _mm512_store_si512(to + pair * 32, open8(from + pair * 32));
}

/* The numbers -8 to 7 in bfloat16, twice. */
#define SIXTEEN                                                                                                       \
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, \
        0x40e0
static const bf16 CODES[32] __attribute__((aligned(64))) = {SIXTEEN, SIXTEEN};

/* (code - 8) * step + middle, rounded. A byte has the code of pair p below, and of pair p + 8 above. */
INLINE void widen4(const char *from, const bf16 *scales, bf16 *to) {
    const __m512i codes = _mm512_load_si512(CODES), odd = _mm512_set1_epi32((int)0xffff0000);
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512 step = wide16(scales), middle = wide16(scales + 16);
    for (int pair = 0; pair < 8; pair++, from += 32, to += 32) {
        __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
        for (int above = 0; above < 2; above++) {
            __m512i code = above ? _mm512_srli_epi16(both, 4) : _mm512_and_si512(both, _mm512_set1_epi16(15));
            __m512i steps = _mm512_permutexvar_epi16(code, codes);
            __m512i first = (__m512i)_mm512_fmadd_ps((__m512)_mm512_slli_epi32(steps, 16), step, middle);
            __m512i second = (__m512i)_mm512_fmadd_ps((__m512)_mm512_and_si512(steps, odd), step, middle);
            first = _mm512_srli_epi32(_mm512_add_epi32(first, half), 16);
            second = _mm512_add_epi32(second, half);
            _mm512_store_si512(to + above * 256, _mm512_mask_blend_epi16(0xaaaaaaaa, first, second));
        }
    }
}

INLINE long chunk_bytes(const int format) {
    return format == BF16 ? 2048 : format == INT8 || format == CODES8 ? 1024 : 512;
}

/* Codes of 4 bits of a pair of inputs, for 16 outputs, and of that 8 pairs on: as 128 + code, which is one operation away
 * from bfloat16. Those of 8 bits lie as code - 128. */
INLINE void open4(const char *from, __m512i *first, __m512i *second) {
    const __m512i base = _mm512_set1_epi16(0x4300), nibble = _mm512_set1_epi16(15);
    const __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
    *first = _mm512_or_si512(_mm512_and_si512(both, nibble), base);
    *second = _mm512_or_si512(_mm512_srli_epi16(both, 4), base);
}

INLINE void open_tile(const char *from, bf16 *to, const int format) {
    __m512i first, second;
    if (format == CODES8) widen8(from, to);
    for (int pair = 0; format != CODES8 && pair < 8; pair++) {
        open4(from + pair * 32, &first, &second);
        _mm512_store_si512(to + pair * 32, first);
        _mm512_store_si512(to + 256 + pair * 32, second);
    }
}

/* Scale and zero of 16 outputs of a group, the zero as its code is opened. */
INLINE void numbers_of(const float *numbers, __m512 *scale, __m512 *zero, const int format) {
    *scale = _mm512_loadu_ps(numbers);
    *zero = _mm512_add_ps(_mm512_loadu_ps(numbers + 16), _mm512_set1_ps(format == CODES4 ? 128.0f : -128.0f));
}

/* (code - zero) * scale of a tile, rounded. */
INLINE void widen_codes(const char *from, const float *numbers, bf16 *to, const int format) {
    const __m512i odd = _mm512_set1_epi32((int)0xffff0000);
    __m512 scale, zero;
    numbers_of(numbers, &scale, &zero, format);
    open_tile(from, to, format);
    for (int pair = 0; pair < 16; pair++, to += 32) {
        const __m512i both = _mm512_load_si512(to);
        const __m512 first = _mm512_mul_ps(_mm512_sub_ps((__m512)_mm512_slli_epi32(both, 16), zero), scale);
        const __m512 second = _mm512_mul_ps(_mm512_sub_ps((__m512)_mm512_and_si512(both, odd), zero), scale);
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
        _mm512_store_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

/* Both tiles of a chunk in bfloat16. */
INLINE void widen(const Layer *layer, long chunk, bf16 *to, const int format) {
    const char *from = layer->weights + chunk * chunk_bytes(format);
    for (int line = 0; line < chunk_bytes(format); line += 64) _mm_prefetch(from + AHEAD + line, _MM_HINT_T0);
    for (int tile = 0; tile < 2; tile++) {
        if (format == INT8) widen8(from + tile * 512, to + tile * 512);
        if (format == INT4) widen4(from + tile * 256, (const bf16 *)layer->scales + (chunk * 2 + tile) * 32, to + tile * 512);
        if (format == CODES4 || format == CODES8) /* a block's chunks are whole groups */
            widen_codes(from + tile * chunk_bytes(format) / 2,
                        (const float *)layer->scales + (chunk / layer->together * 2 + tile) * 32, to + tile * 512, format);
    }
}

/* Sums of up to 32 rows, scaled and with the bias, as bfloat16; gated: silu(first tile) * second tile. sums: rows 0 to 15
   of either tile, then the others. */
INLINE void write_out(const Layer *layer, long block, float (*sums)[256], bf16 *out, long rows, const int is_gated,
                      const int format) {
    const long second = layer->is_paired ? layer->outputs / 2 + block * 16 : block * 32 + 16;
    const long columns[2] = {layer->is_paired ? block * 16 : block * 32, second};
    __m512 scale[2], bias[2];
    for (int tile = 0; tile < 2; tile++) {
        long at = block * 32 + tile * 16;
        scale[tile] = format == INT8 ? _mm512_loadu_ps((const float *)layer->scales + at) : _mm512_set1_ps(1.0f);
        bias[tile] = layer->bias ? _mm512_loadu_ps(layer->bias + at) : _mm512_setzero_ps();
    }
    for (long row = 0; row < rows; row++) {
        __m512 made[2];
        for (int tile = 0; tile < 2; tile++)
            made[tile] = _mm512_fmadd_ps(_mm512_load_ps(sums[row / 16 * 2 + tile] + row % 16 * 16), scale[tile], bias[tile]);
        if (is_gated) {
            lanes rounded[2]; /* as they are where they are written */
            for (int tile = 0; tile < 2; tile++) rounded[tile] = widened(narrow_lanes((lanes)made[tile]));
            put_lanes(out, row * (layer->outputs / 2) + columns[0], gated(rounded[0], rounded[1], 0), 0);
            continue;
        }
        for (int tile = 0; tile < 2 && columns[tile] < layer->outputs; tile++)
            put_lanes(out, row * layer->outputs + columns[tile], (lanes)made[tile], 0);
    }
}

/* -- on tile registers ------------------------------------------------------------------------------------------- */

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)

#define REQUEST_PERMISSION 0x1023 /* arch_prctl's ARCH_REQ_XCOMP_PERM, for XFEATURE_XTILEDATA */
#define TILE_DATA 18
#define PANEL_BYTES 600000 /* of bfloat16 weights that a thread keeps in its cache while it goes over all rows */
#define RING 4             /* chunks being widened: a tile cannot be loaded at once from what was just stored */

/* Whether the system lets this process use tiles. */
int danlu_tiles(void) { return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0; }

/* Tiles 0 to 3 become the products of up to 32 rows (`is_tall`: more than 16) with one block. */
INLINE void block_product(const Layer *layer, long block, const bf16 *x, const bf16 *widened, bf16 *ring, const int is_tall,
                          const int format) {
    const long chunks = layer->inputs / 32, first = block * chunks;
    const int in_flight = format != BF16 && !widened;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long c = 0; in_flight && c < RING - 1 && c < chunks; c++) widen(layer, first + c, ring + c * CHUNK, format);
    for (long c = 0; c < chunks; c++) {
        const bf16 *w;
        if (in_flight) {
            long next = c + RING - 1;
            if (next < chunks) widen(layer, first + next, ring + next % RING * CHUNK, format);
            w = ring + c % RING * CHUNK;
        } else {
            w = (format == BF16 ? (const bf16 *)layer->weights + first * CHUNK : widened) + c * CHUNK;
            for (int line = 0; line < 2048; line += 64) _mm_prefetch((const char *)(w + CHUNK) + line, _MM_HINT_T0);
        }
        _tile_loadd(6, w, 64);
        _tile_loadd(4, x + c * 32, layer->stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (is_tall) {
            _tile_loadd(5, x + 16 * layer->stride + c * 32, layer->stride * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

INLINE void run_panel(const Layer *layer, long from, long to, const bf16 *x, bf16 *out, long rows, bf16 *widened,
                      const int is_gated, const int format) {
    float sums[4][256] __attribute__((aligned(64)));
    bf16 ring[RING * CHUNK] __attribute__((aligned(64)));
    const long chunks = layer->inputs / 32, width = is_gated ? layer->outputs / 2 : layer->outputs;
    for (long c = from * chunks; widened && c < to * chunks; c++) widen(layer, c, widened + (c - from * chunks) * CHUNK, format);
    long shaped = 0;
    for (long row = 0; row < rows; row += 32) {
        long some = rows - row < 32 ? rows - row : 32;
        if (some != shaped) shape_tiles(shaped = some);
        for (long block = from; block < to; block++) {
            const bf16 *own = widened ? widened + (block - from) * chunks * CHUNK : NULL;
            if (some > 16)
                block_product(layer, block, x + row * layer->stride, own, ring, 1, format);
            else
                block_product(layer, block, x + row * layer->stride, own, ring, 0, format);
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            if (some > 16) {
                _tile_stored(2, sums[2], 64);
                _tile_stored(3, sums[3], 64);
            }
            write_out(layer, block, sums, out + row * width, some, is_gated, format);
        }
    }
}

static int on_tiles(const Layer *layer, const bf16 *x, long rows, bf16 *out, int format, int is_gated, int threads) {
    const long inputs = layer->inputs, blocks = (layer->outputs + 31) / 32, each = (blocks + threads - 1) / threads;
    long panel = PANEL_BYTES / (inputs * 64);
    panel = panel < 1 ? 1 : panel > each ? each : panel;
    panel = (each + (each + panel - 1) / panel - 1) / ((each + panel - 1) / panel); /* as many, of equal size */
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const int is_kept = format != BF16 && rows > 32;
        bf16 *widened = is_kept ? aligned_alloc(64, panel * inputs * 64) : NULL;
        if (is_kept && !widened) failed = 1;
#pragma omp for schedule(static) nowait
        for (long from = 0; from < blocks; from += panel) {
            long to = from + panel < blocks ? from + panel : blocks;
            if (is_kept && !widened) continue;
#define CASE(GATED, FORMAT)                                                                                           \
    if (is_gated == GATED && format == FORMAT) run_panel(layer, from, to, x, out, rows, widened, GATED, FORMAT);
            CASE(0, BF16) CASE(1, BF16) CASE(0, INT8) CASE(1, INT8) CASE(0, INT4) CASE(1, INT4)
            CASE(0, CODES4) CASE(1, CODES4) CASE(0, CODES8) CASE(1, CODES8)
        }
        _tile_release();
        free(widened);
    }
    return failed;
}

#else
int danlu_tiles(void) { return 0; }

static int on_tiles(const Layer *layer, const bf16 *x, long rows, bf16 *out, int format, int is_gated, int threads) {
    return 1;
}
#endif

/* -- in vectors --------------------------------------------------------------------------------------------------- */

#define TALL 12   /* rows whose sums are in registers */
#define FEW 8     /* rows for which codes of int4 are opened: of more, steps and middles of each chunk take longer than widening */
#define FEWEST 2  /* such rows beside tile registers */
#define FAR 12288 /* bytes of bfloat16 weights that are fetched ahead */

typedef int32_t two __attribute__((may_alias)); /* neighbouring inputs */

INLINE __m512bh pair_of(const bf16 *x, int pair) { return (__m512bh)_mm512_set1_epi32(((const two *)x)[pair]); }

/* A chunk's products with rows are added: over the pairs of inputs in their order, however many rows there are. Of 4 bits
 * each pair is followed by the one whose codes lie in the same bytes. */
INLINE void add_chunk(const bf16 *w, const bf16 *x, long stride, __m512 sums[][2], const int rows, const int format) {
    for (int step = 0; step < 16; step++) {
        const int pair = format == INT4 || format == CODES4 ? step / 2 + step % 2 * 8 : step;
        const __m512bh low = (__m512bh)_mm512_load_si512(w + pair * 32);
        const __m512bh high = (__m512bh)_mm512_load_si512(w + 512 + pair * 32);
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++) {
            const __m512bh both = pair_of(x + row * stride, pair);
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], low, both);
            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], high, both);
        }
    }
}

/* The same of codes, which are opened in registers. */
INLINE void add_codes(const char *from, const bf16 *x, long stride, __m512 sums[][2], const int rows, const int format) {
    for (int line = 0; line < chunk_bytes(format); line += 64) _mm_prefetch(from + AHEAD + line, _MM_HINT_T0);
    for (int pair = 0; pair < (format == CODES8 ? 16 : 8); pair++) {
        __m512i w[2][2];
        for (int tile = 0; tile < 2; tile++) {
            const char *own = from + tile * chunk_bytes(format) / 2 + pair * 32;
            if (format == CODES8) w[0][tile] = open8(own);
            else open4(own, &w[0][tile], &w[1][tile]);
        }
        for (int half = 0; half < (format == CODES8 ? 1 : 2); half++)
#pragma GCC unroll 12
            for (int row = 0; row < rows; row++) {
                const __m512bh both = pair_of(x + row * stride, pair + half * 8);
                for (int tile = 0; tile < 2; tile++)
                    sums[row][tile] = _mm512_dpbf16_ps(sums[row][tile], (__m512bh)w[half][tile], both);
            }
    }
}

/* What opened codes have brought, with their numbers: steps and middles of int4's chunk, or scales and zeros of a group.
 * totals: of each row, the sum of the inputs. */
INLINE void add_steps(const void *scales, const float *totals, long groups, __m512 own[][2], __m512 sums[][2], const int rows,
                      const int format) {
    for (int tile = 0; tile < 2; tile++) {
        __m512 step, rest;
        if (format == INT4) {
            step = wide16((const bf16 *)scales + tile * 32);
            rest = _mm512_fmadd_ps(step, _mm512_set1_ps(-136.0f), wide16((const bf16 *)scales + tile * 32 + 16));
        } else {
            numbers_of((const float *)scales + tile * 32, &step, &rest, format);
        }
        for (int row = 0; row < rows; row++) {
            const __m512 total = _mm512_set1_ps(totals[row * groups]);
            if (format == INT4) {
                sums[row][tile] = _mm512_fmadd_ps(step, own[row][tile], sums[row][tile]);
                sums[row][tile] = _mm512_fmadd_ps(rest, total, sums[row][tile]);
            } else {
                sums[row][tile] = _mm512_fmadd_ps(step, _mm512_fnmadd_ps(rest, total, own[row][tile]), sums[row][tile]);
            }
        }
    }
}

/* Rows with a block, of weights that become bfloat16, if they are not, and are multiplied. */
INLINE void add_rows(const Layer *layer, long block, const bf16 *x, const bf16 *widened, float (*sums)[256], int is_first,
                     const int rows, const int format) {
    bf16 own[CHUNK] __attribute__((aligned(64)));
    const long chunks = layer->inputs / 32, first = block * chunks;
    __m512 made[TALL][2];
    for (int row = 0; row < rows; row++) made[row][0] = made[row][1] = _mm512_setzero_ps();
    for (long c = 0; c < chunks; c++, x += 32) {
        const bf16 *w = widened ? widened + c * CHUNK : own;
        if (format == BF16) {
            w = (const bf16 *)layer->weights + (first + c) * CHUNK;
            for (int line = 0; is_first && line < 2048; line += 64) _mm_prefetch((const char *)w + FAR + line, _MM_HINT_T0);
        } else if (!widened) {
            widen(layer, first + c, own, format);
        }
        add_chunk(w, x, layer->stride, made, rows, BF16);
    }
    for (int row = 0; row < rows; row++)
        for (int tile = 0; tile < 2; tile++) _mm512_store_ps(sums[tile] + row * 16, made[row][tile]);
}

/* The same of codes, which are multiplied as they are: a group's numbers come once for all of it. */
INLINE void add_groups(const Layer *layer, long block, const bf16 *x, const bf16 *opened, const float *totals,
                       float (*sums)[256], const int rows, const int format) {
    const long chunks = layer->inputs / 32, groups = chunks / layer->together;
    const char *weights = layer->weights + block * chunks * chunk_bytes(format);
    const char *numbers = (const char *)layer->scales + block * groups * (format == INT4 ? 128 : 256);
    __m512 made[TALL][2];
    for (int row = 0; row < rows; row++) made[row][0] = made[row][1] = _mm512_setzero_ps();
    for (long group = 0, c = 0; group < groups; group++, numbers += format == INT4 ? 128 : 256) {
        __m512 codes[TALL][2];
        for (int row = 0; row < rows; row++) codes[row][0] = codes[row][1] = _mm512_setzero_ps();
        for (long last = c + layer->together; c < last; c++)
            if (opened) add_chunk(opened + c * CHUNK, x + c * 32, layer->stride, codes, rows, format);
            else add_codes(weights + c * chunk_bytes(format), x + c * 32, layer->stride, codes, rows, format);
        add_steps(numbers, totals + group, groups, codes, made, rows, format);
    }
    for (int row = 0; row < rows; row++)
        for (int tile = 0; tile < 2; tile++) _mm512_store_ps(sums[tile] + row * 16, made[row][tile]);
}

/* All rows with a block, as many at a time as are the same to one. totals: of codes that are opened, the sum of each row's
 * inputs of each group. */
INLINE void run_block(const Layer *layer, long block, const bf16 *x, bf16 *out, long rows, bf16 *widened,
                      const float *totals, int is_gated, const int format, const int is_opened) {
    float sums[4][256] __attribute__((aligned(64)));
    const long chunks = layer->inputs / 32, width = is_gated ? layer->outputs / 2 : layer->outputs;
    for (long c = 0; widened && c < chunks; c++) {
        const char *own = layer->weights + (block * chunks + c) * chunk_bytes(format);
        if (!is_opened) widen(layer, block * chunks + c, widened + c * CHUNK, format);
        for (int tile = 0; is_opened && tile < 2; tile++)
            open_tile(own + tile * chunk_bytes(format) / 2, widened + c * CHUNK + tile * 512, format);
    }
    for (long row = 0, left = (rows + TALL - 1) / TALL, some; row < rows; row += some, left--) {
        some = (rows - row + left - 1) / left;
        const bf16 *from = x + row * layer->stride;
        const float *own = totals ? totals + row * (chunks / layer->together) : NULL;
        switch (some) {
#define ROWS(COUNT)                                                            \
    case COUNT:                                                                \
        if (is_opened) add_groups(layer, block, from, widened, own, sums, COUNT, format); \
        else add_rows(layer, block, from, widened, sums, row == 0, COUNT, format); \
        break;
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
        }
        if (is_gated) write_out(layer, block, sums, out + row * width, some, 1, format);
        else write_out(layer, block, sums, out + row * width, some, 0, format);
    }
}

/* The sum of each row's inputs of each group, whose chunks are added in their order. */
static float *totals_of(const Layer *layer, const bf16 *x, long rows, int threads) {
    const long groups = layer->inputs / 32 / layer->together;
    float *totals = malloc(rows * groups * sizeof(float) + 1);
#pragma omp parallel for num_threads(threads) if (rows * layer->inputs > 65536)
    for (long at = 0; at < (totals ? rows * groups : 0); at++) {
        const bf16 *from = x + at / groups * layer->stride + at % groups * layer->together * 32;
        float total = 0;
        for (long c = 0; c < layer->together; c++, from += 32)
            total += _mm512_reduce_add_ps(_mm512_add_ps(wide16(from), wide16(from + 16)));
        totals[at] = total;
    }
    return totals;
}

static int in_vectors(const Layer *layer, const bf16 *x, long rows, bf16 *out, int format, int is_gated, int threads) {
    const long blocks = (layer->outputs + 31) / 32;
    const int is_opened = format == CODES4 || format == CODES8 || (format == INT4 && rows <= FEW);
    float *totals = is_opened ? totals_of(layer, x, rows, threads) : NULL;
    int failed = is_opened && !totals;
#pragma omp parallel num_threads(threads)
    {
        const int is_kept = format != BF16 && rows > TALL;
        bf16 *widened = is_kept ? aligned_alloc(64, layer->inputs * 64) : NULL;
        if (is_kept && !widened) failed = 1;
#pragma omp for schedule(static) nowait
        for (long block = 0; block < blocks; block++) {
            if (failed) continue;
#define CASE_OF(FORMAT, OPENED)                                                                                       \
    if (format == FORMAT && is_opened == OPENED)                                                                      \
        run_block(layer, block, x, out, rows, widened, totals, is_gated, FORMAT, OPENED);
            CASE_OF(BF16, 0) CASE_OF(INT8, 0) CASE_OF(INT4, 0) CASE_OF(INT4, 1) CASE_OF(CODES4, 1) CASE_OF(CODES8, 1)
        }
        free(widened);
    }
    free(totals);
    return failed;
}

/* out (rows, outputs, or half of them when gated) = x (rows, inputs) W^T, scaled, + bias. Returns 1 when there was no
 * memory. outputs is a multiple of 16, inputs of 32, and of groups of `together` times 32; weights begin at a multiple of 64
 * bytes. */
int danlu_product(const bf16 *x, long rows, const char *weights, const void *scales, const float *bias, bf16 *out,
                  long outputs, long inputs, long together, int format, int is_paired, int is_gated, int is_tiled,
                  int threads) {
    const long stride = inputs % ALIKE || rows == 1 ? inputs : inputs + 32;
    const Layer layer = {weights, scales, bias, outputs, inputs, is_paired, stride, together};
    bf16 *apart = stride == inputs ? NULL : aligned_alloc(64, (rows * stride * sizeof(bf16) + 63) / 64 * 64);
    if (stride != inputs && !apart) return 1;
#pragma omp parallel for num_threads(threads) if (rows * inputs > 65536)
    for (long row = 0; row < (apart ? rows : 0); row++)
        memcpy(apart + row * stride, x + row * inputs, inputs * sizeof(bf16));
    is_tiled &= format != INT4 || rows > FEWEST; /* codes are opened in half the time that widening takes */
    int failed = (is_tiled ? on_tiles : in_vectors)(&layer, apart ? apart : x, rows, out, format, is_gated, threads);
    free(apart);
    return failed;
}

int danlu_blocks(void) { return 1; }
#else
int danlu_blocks(void) { return 0; }
int danlu_tiles(void) { return 0; }
#endif
