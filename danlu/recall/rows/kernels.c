/* Sets of rows as packed words: and, or, not of many of them in one pass, their rows, and what values they have.
 *
 * A set is cut into shards of 2^20 rows; each is empty, full, a sorted list of uint32 places, or packed words, so that a
 * shard of every operand fits into a core's own cache. plain.py holds the plain forms, with which all of this is
 * compared; kernels.py calls. No threads here: the caller hands out ranges of shards. What lies on a disk may be damaged,
 * so no place and no code that is read leads outside its array.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SHARD_ROWS (1L << 20)
#define SHARD_WORDS (SHARD_ROWS / 64)

enum { EMPTY, FULL, SPARSE, DENSE };
enum { LEAF, AND, OR, NOT };
enum { BITS, CODES8, CODES16, CODES32, INTEGERS, FLOATS };

/* The rows of one shard: `at` is a list of `count` places, or words. */
typedef struct {
    int kind;
    long count;
    const void *at;
} value;

/* A tree of operations in prefix order, three numbers a node: what it is, where the next after it is, its leaf. */
typedef struct {
    const int64_t *nodes, *leaves;
    long shard, rows; /* rows of this shard */
    uint64_t *scratch;
} task;

static uint64_t *buffer(const task *t, long depth) { return t->scratch + (depth + 1) * SHARD_WORDS; }

static long words_of(const task *t) { return (t->rows + 63) / 64; }

static void mask_tail(const task *t, uint64_t *words) {
    if (t->rows % 64) words[t->rows / 64] &= (1ULL << (t->rows % 64)) - 1;
}

static inline int has(const task *t, const uint64_t *words, uint32_t place) {
    return place < t->rows && (words[place >> 6] >> (place & 63) & 1);
}

static void set_all(const task *t, uint64_t *words, const uint32_t *places, long count) {
    for (long i = 0; i < count; i++)
        if (places[i] < t->rows) words[places[i] >> 6] |= 1ULL << (places[i] & 63);
}

static void clear_all(const task *t, uint64_t *words, const uint32_t *places, long count) {
    for (long i = 0; i < count; i++)
        if (places[i] < t->rows) words[places[i] >> 6] &= ~(1ULL << (places[i] & 63));
}

static long count_bits(const uint64_t *words, long count) {
    long total = 0;
    for (long i = 0; i < count; i++) total += __builtin_popcountll(words[i]);
    return total;
}

/* The places of a value where the buffer may be written; a list that lies in it is moved to the spare one. */
static const uint32_t *moved(const task *t, value v, const uint64_t *into) {
    if (v.at != (const void *)into) return v.at;
    memcpy(t->scratch, v.at, v.count * sizeof(uint32_t));
    return (const uint32_t *)t->scratch;
}

/* Words of a value in the buffer of this depth, where they may be changed. */
static uint64_t *dense(const task *t, value v, long depth) {
    uint64_t *into = buffer(t, depth);
    if (v.kind == DENSE) {
        if (v.at != (const void *)into) memcpy(into, v.at, words_of(t) * 8);
        return into;
    }
    const uint32_t *places = moved(t, v, into);
    memset(into, 0, words_of(t) * 8);
    set_all(t, into, places, v.count);
    return into;
}

static value negated(const task *t, value v, long depth) {
    if (v.kind == EMPTY) return (value){FULL};
    if (v.kind == FULL) return (value){EMPTY};
    uint64_t *into = buffer(t, depth);
    if (v.kind == DENSE) {
        const uint64_t *words = v.at;
        for (long i = 0; i < words_of(t); i++) into[i] = ~words[i];
    } else {
        const uint32_t *places = moved(t, v, into);
        memset(into, 255, words_of(t) * 8);
        clear_all(t, into, places, v.count);
    }
    mask_tail(t, into);
    return (value){DENSE, 0, into};
}

/* Of a's places those that are (or are not) among b's. */
static value merged(const task *t, value a, value b, int wanted, long depth) {
    uint32_t *into = (uint32_t *)buffer(t, depth);
    const uint32_t *x = a.at, *y = b.at;
    long found = 0, i = 0, j = 0;
    while (i < a.count && j < b.count) {
        const uint32_t mine = x[i], theirs = y[j];
        into[found] = mine;
        found += wanted ? mine == theirs : mine < theirs;
        i += mine <= theirs;
        j += theirs <= mine;
    }
    while (!wanted && i < a.count) into[found++] = x[i++];
    return found ? (value){SPARSE, found, into} : (value){EMPTY};
}

/* Of some places those that are (or are not) in the words; without a branch, since which they are cannot be foretold. */
static value filtered(const task *t, value places, value words, int wanted, long depth) {
    uint32_t *const into = (uint32_t *)buffer(t, depth);
    uint32_t *const kept = words.at == (const void *)into ? (uint32_t *)t->scratch : into;
    const uint32_t *x = places.at, rows = (uint32_t)t->rows;
    const uint64_t *in = words.at;
    long found = 0;
    for (long i = 0; i < places.count; i++) {
        const uint32_t place = x[i], inside = place < rows ? place : 0;
        kept[found] = place;
        found += ((int)(in[inside >> 6] >> (inside & 63)) & (place < rows)) == wanted;
    }
    if (kept != into) memcpy(into, kept, found * sizeof(uint32_t));
    return found ? (value){SPARSE, found, into} : (value){EMPTY};
}

static value both(const task *t, value a, value b, long depth) {
    if (a.kind == EMPTY || b.kind == FULL) return a;
    if (b.kind == EMPTY || a.kind == FULL) return b;
    if (a.kind == SPARSE && b.kind == SPARSE) return merged(t, a, b, 1, depth);
    if (a.kind == SPARSE) return filtered(t, a, b, 1, depth);
    if (b.kind == SPARSE) return filtered(t, b, a, 1, depth);
    uint64_t *into = buffer(t, depth);
    const uint64_t *x = a.at, *y = b.at;
    for (long i = 0; i < words_of(t); i++) into[i] = x[i] & y[i];
    return (value){DENSE, 0, into};
}

static value minus(const task *t, value a, value b, long depth) {
    if (a.kind == EMPTY || b.kind == EMPTY) return a;
    if (b.kind == FULL) return (value){EMPTY};
    if (a.kind == FULL) return negated(t, b, depth);
    if (a.kind == SPARSE && b.kind == SPARSE) return merged(t, a, b, 0, depth);
    if (a.kind == SPARSE) return filtered(t, a, b, 0, depth);
    if (b.kind == SPARSE) {
        uint64_t *into = dense(t, a, depth);
        clear_all(t, into, b.at, b.count);
        return (value){DENSE, 0, into};
    }
    uint64_t *into = buffer(t, depth);
    const uint64_t *x = a.at, *y = b.at;
    for (long i = 0; i < words_of(t); i++) into[i] = x[i] & ~y[i];
    return (value){DENSE, 0, into};
}

static value either(const task *t, value a, value b, long depth) {
    if (a.kind == FULL || b.kind == EMPTY) return a;
    if (b.kind == FULL || a.kind == EMPTY) return b;
    if (b.kind == SPARSE) {
        uint64_t *into = dense(t, a, depth);
        set_all(t, into, b.at, b.count);
        return (value){DENSE, 0, into};
    }
    uint64_t *into = buffer(t, depth);
    const uint64_t *y = b.at;
    if (a.kind == SPARSE) {
        dense(t, a, depth);
        for (long i = 0; i < words_of(t); i++) into[i] |= y[i];
    } else {
        const uint64_t *x = a.at;
        for (long i = 0; i < words_of(t); i++) into[i] = x[i] | y[i];
    }
    return (value){DENSE, 0, into};
}

/* -- leaves ------------------------------------------------------------------------------------------------------ */

/* Words out of one byte a row, 0 or 1, that `FLAG` gives for row `i`: 64 of them, then eight at a time. */
#define PACK(FLAG)                                                                                                      \
    for (long w = 0; w < t->rows / 64; w++) {                                                                           \
        uint8_t flags[64];                                                                                              \
        for (long j = 0, i = w * 64; j < 64; j++, i++) flags[j] = (FLAG);                                               \
        uint64_t word = 0;                                                                                              \
        for (long j = 0; j < 8; j++) {                                                                                  \
            uint64_t eight;                                                                                             \
            memcpy(&eight, flags + 8 * j, 8);                                                                           \
            word |= (eight * 0x0102040810204080ULL >> 56) << (8 * j);                                                   \
        }                                                                                                               \
        into[w] = word;                                                                                                 \
    }                                                                                                                   \
    if (t->rows % 64) {                                                                                                 \
        uint64_t word = 0;                                                                                              \
        for (long i = t->rows / 64 * 64; i < t->rows; i++) word |= (uint64_t)(FLAG) << (i % 64);                        \
        into[t->rows / 64] = word;                                                                                      \
    }

/* Rows whose code is among the chosen ones: a table of bytes, one a code, or from `low` to `high`. */
#define SCAN_CODES(TYPE)                                                                                                \
    {                                                                                                                   \
        const TYPE *codes = (const TYPE *)leaf[1] + t->shard * SHARD_ROWS;                                              \
        if (chosen) {                                                                                                   \
            PACK(codes[i] < size ? chosen[codes[i]] : 0)                                                                \
        } else {                                                                                                        \
            const TYPE low = (TYPE)leaf[4], width = (TYPE)(leaf[5] - leaf[4]);                                          \
            PACK((TYPE)(codes[i] - low) <= width)                                                                       \
        }                                                                                                               \
    }

static void scan_codes(const task *t, const int64_t *leaf, uint64_t *into) {
    const uint8_t *chosen = (const uint8_t *)leaf[2];
    const int64_t size = leaf[3];
    if (leaf[0] == CODES8) SCAN_CODES(uint8_t)
    else if (leaf[0] == CODES16) SCAN_CODES(uint16_t)
    else SCAN_CODES(uint32_t)
}

/* Rows whose value is from `low` to `high`; the least and the largest of a shard are looked at first. */
#define SCAN_VALUES(TYPE)                                                                                               \
    {                                                                                                                   \
        const TYPE *values = (const TYPE *)leaf[1] + t->shard * SHARD_ROWS;                                             \
        const TYPE *zone = (const TYPE *)leaf[2] + t->shard * 2;                                                        \
        TYPE low, high;                                                                                                 \
        memcpy(&low, leaf + 4, 8);                                                                                      \
        memcpy(&high, leaf + 5, 8);                                                                                     \
        if (zone[1] < low || zone[0] > high) return (value){EMPTY};                                                     \
        if (low <= zone[0] && zone[1] <= high) return (value){FULL};                                                    \
        PACK((values[i] >= low) & (values[i] <= high))                                                                  \
    }

static value leaf_value(const task *t, const int64_t *leaf, long depth) {
    if (leaf[0] == BITS) {
        const uint8_t kind = ((const uint8_t *)leaf[2])[t->shard];
        const int64_t offset = ((const int64_t *)leaf[3])[t->shard], count = ((const int64_t *)leaf[4])[t->shard];
        return (value){kind, count, (const uint64_t *)leaf[1] + offset};
    }
    uint64_t *into = buffer(t, depth);
    if (leaf[0] == INTEGERS) SCAN_VALUES(int64_t)
    else if (leaf[0] == FLOATS) SCAN_VALUES(double)
    else scan_codes(t, leaf, into);
    return (value){DENSE, 0, into};
}

/* -- the tree ---------------------------------------------------------------------------------------------------- */

static value result(const task *t, long at, long depth) {
    const int64_t *node = t->nodes + 3 * at;
    if (node[0] == LEAF) return leaf_value(t, t->leaves + 6 * node[2], depth);
    if (node[0] == NOT) return negated(t, result(t, at + 1, depth), depth);
    const int is_and = node[0] == AND;
    value sofar = {is_and ? FULL : EMPTY};
    for (long next = at + 1; next < node[1]; next = t->nodes[3 * next + 1]) {
        if (sofar.kind == (is_and ? EMPTY : FULL)) break;
        const int without = is_and && t->nodes[3 * next] == NOT;
        const long free = sofar.kind <= FULL ? depth : depth + 1;
        value other = result(t, without ? next + 1 : next, free);
        if (without) sofar = minus(t, sofar, other, depth);
        else sofar = is_and ? both(t, sofar, other, depth) : either(t, sofar, other, depth);
    }
    return sofar;
}

/* The shard as it is kept: what kind follows from how many rows it has. Returns how many. */
static long emit(const task *t, value v, uint64_t *out, uint8_t *kind, int64_t *kept) {
    const long words = words_of(t);
    long count = v.kind == EMPTY ? 0 : v.kind == FULL ? t->rows : v.kind == SPARSE ? v.count : count_bits(v.at, words);
    *kept = count;
    if (!out) return count;
    if (count == 0) *kind = EMPTY;
    else if (count == t->rows) *kind = FULL;
    else if (v.kind == SPARSE) {
        *kind = SPARSE;
        memcpy(out, v.at, count * sizeof(uint32_t));
    } else if (count * 4 < words * 8) {
        *kind = SPARSE;
        uint32_t *places = (uint32_t *)out;
        for (long w = 0; w < words; w++)
            for (uint64_t left = ((const uint64_t *)v.at)[w]; left; left &= left - 1)
                *places++ = (uint32_t)(w * 64 + __builtin_ctzll(left));
    } else {
        *kind = DENSE;
        memcpy(out, v.at, words * 8);
    }
    return count;
}

/* Rows of the tree in shards first to last; into `out` (of `SHARD_WORDS` a shard), unless it is NULL. -1: no memory. */
long danlu_evaluate(const int64_t *nodes, const int64_t *leaves, long rows, long first, long last, long depth,
                    uint64_t *out, uint8_t *kinds, int64_t *counts) {
    static __thread uint64_t *scratch;
    static __thread long held;
    if (held < depth + 3) {
        free(scratch);
        held = 0;
        scratch = malloc((depth + 3) * SHARD_WORDS * 8);
        if (!scratch) return -1;
        held = depth + 3;
    }
    long total = 0;
    for (long shard = first; shard < last; shard++) {
        const long left = rows - shard * SHARD_ROWS;
        task t = {nodes, leaves, shard, left < SHARD_ROWS ? left : SHARD_ROWS, scratch};
        value v = result(&t, 0, 0);
        total += emit(&t, v, out ? out + shard * SHARD_WORDS : NULL, out ? kinds + shard : NULL, counts + shard);
    }
    return total;
}

/* -- what a set holds -------------------------------------------------------------------------------------------- */

/* Run `DO` for each row of the set in shards first to last, its number in the segment in `row`. */
#define EACH_ROW(DO)                                                                                                    \
    for (long shard = first; shard < last; shard++) {                                                                   \
        const long start = shard * SHARD_ROWS, left = rows - start < SHARD_ROWS ? rows - start : SHARD_ROWS;            \
        const uint64_t *at = words + offsets[shard];                                                                    \
        if (kinds[shard] == FULL) {                                                                                     \
            for (long row = start; row < start + left; row++) { DO; }                                                   \
        } else if (kinds[shard] == SPARSE) {                                                                            \
            const uint32_t *places = (const uint32_t *)at;                                                              \
            for (long i = 0; i < counts[shard]; i++)                                                                    \
                if (places[i] < left) { const long row = start + places[i]; DO; }                                       \
        } else if (kinds[shard] == DENSE) {                                                                             \
            for (long w = 0; w < (left + 63) / 64; w++)                                                                 \
                for (uint64_t some = at[w]; some; some &= some - 1) {                                                   \
                    const long row = start + w * 64 + __builtin_ctzll(some);                                            \
                    if (row >= rows) break;                                                                             \
                    DO;                                                                                                 \
                }                                                                                                       \
        }                                                                                                               \
    }

#define SET const uint64_t *words, const uint8_t *kinds, const int64_t *offsets, const int64_t *counts, long rows

/* Numbers of the rows, at most `size` of them; returns how many. */
long danlu_places(SET, long first, long last, uint32_t *out, long size) {
    long found = 0;
    EACH_ROW(if (found == size) return found; out[found++] = (uint32_t)row)
    return found;
}

/* How many of the rows have each code, added to `out`; codes that are none of the `size` are passed over. */
void danlu_histogram(SET, long first, long last, const void *codes, long width, int64_t *out, long size) {
    if (width == 1) { EACH_ROW(const long code = ((const uint8_t *)codes)[row]; if (code < size) out[code]++) }
    else if (width == 2) { EACH_ROW(const long code = ((const uint16_t *)codes)[row]; if (code < size) out[code]++) }
    else { EACH_ROW(const long code = ((const uint32_t *)codes)[row]; if (code < size) out[code]++) }
}

/* A number for each text, of its bytes from offsets[i] to offsets[i + 1]; texts that differ may share one. */
void danlu_hashes(const int64_t *offsets, const uint8_t *bytes, long count, uint64_t *out) {
    for (long i = 0; i < count; i++) {
        uint64_t sum = 0, power = 1;
        for (int64_t at = offsets[i]; at < offsets[i + 1]; at++) {
            sum += (bytes[at] + 1ULL) * power;
            power *= 0x9E3779B97F4A7C15ULL;
        }
        sum ^= sum >> 32;
        sum *= 0xD6E8FEB86659FD93ULL;
        out[i] = sum ^ sum >> 32;
    }
}

/* Places of numbers in their order, equal ones in theirs; `next` is where those of each number begin, and is moved on. */
void danlu_sorted(const int32_t *numbers, long count, int64_t *next, int64_t *out) {
    for (long i = 0; i < count; i++) out[next[numbers[i]]++] = i;
}
