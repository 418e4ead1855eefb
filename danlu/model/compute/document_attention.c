/* Causal attention of documents that lie in rows, and its gradients, in bfloat16 or float32 with float32 sums.
 *
 * No score is kept: the way back makes them again from what they summed to (Dao et al. 2022, arXiv:2205.14135, algorithm 4).
 * A head of a document is worked on by one thread, in one order, whatever the number of threads.
 *
 * Every product here is A B with the numbers of A one behind the other and those of B side by side. What it sums over goes
 * by units of 32 bits: two neighbours in bfloat16 where the processor multiplies such pairs, else one float. Matrices of
 * units are turned alike in both forms.
 */
#include "lanes.h"

#if defined(__AVX512BF16__) && LANES == 16
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif
#define VECTORS 4 /* of B whose sums are in registers */
#define PANEL (VECTORS * LANES)
#define LINES (LANES == 16 ? 6 : HAS_MANY ? 2 : 1) /* rows of A whose sums are */
#define BLOCK 64 /* queries that are taken together on the way back; a multiple of PANEL */
#define FEW 16 /* on the way forward, where they meet all keys at once */

typedef uint32_t unit;

typedef struct {
    const void *data;
    long row, head; /* numbers from one to the next */
} Rows;

typedef struct {
    Rows q, k, v, out, grad;
    void *made; /* out on the way forward */
    float *logs; /* (heads, tokens): of the sum of a query's raised scores */
    const int64_t *rows; /* of each document's tokens, so many in all as `starts` says */
    const int64_t *starts, *own; /* where a document begins in `rows`; the first place whose query is asked in it */
    float *of_keys, *of_values; /* (heads, tokens, dim) */
    long documents, tokens, heads, kv_heads, dim, window, chunk;
    float scale;
    int is_wide;
} Job;

INLINE long up_to(long x, long step) { return (x + step - 1) / step * step; }
INLINE long smaller(long a, long b) { return a < b ? a : b; }
INLINE long larger(long a, long b) { return a > b ? a : b; }
INLINE long units_of(long numbers, const int paired) { return paired ? numbers / 2 : numbers; }

INLINE const char *row_of(const Rows *from, long token, long head, int is_wide) {
    return (const char *)from->data + (token * from->row + head * from->head) * (is_wide ? 4 : 2);
}

/* Places `start` to `end` of a document as units, one behind the other; zeros up to `padded`. */
INLINE void take(const Job *job, const Rows *from, long head, const int64_t *rows, long start, long end, long padded,
                 unit *to, const int paired) {
    const long dim = job->dim, width = units_of(dim, paired);
    for (long at = start; at < end; at++, to += width) {
        const char *row = row_of(from, rows[at], head, job->is_wide);
        if (paired || job->is_wide) memcpy(to, row, width * sizeof *to);
        else for (long d = 0; d < dim; d += LANES) *(lanes *)(to + d) = wide_lanes((const bf16 *)row + d);
    }
    memset(to, 0, (padded - end) * width * sizeof *to);
}

/* (rows, columns) to (columns, rows). */
INLINE void turn(const unit *from, long from_stride, unit *to, long to_stride, long rows, long columns) {
    for (long column = 0; column < columns; column += LANES)
        for (long row = 0; row < rows; row += LANES) {
            lanes block[LANES] = {0};
            const long high = smaller(LANES, rows - row), wide = smaller(LANES, columns - column);
            if (wide == LANES)
                for (long at = 0; at < high; at++) block[at] = *(const lanes *)(from + (row + at) * from_stride + column);
            else
                for (long at = 0; at < high; at++) memcpy(block + at, from + (row + at) * from_stride + column, wide * sizeof *from);
            transpose(block);
            for (long at = 0; at < wide; at++)
                if (high == LANES) *(lanes *)(to + (column + at) * to_stride + row) = block[at];
                else memcpy(to + (column + at) * to_stride + row, block + at, high * sizeof *to);
        }
}

/* Rows of numbers as units whose two are of neighbouring rows: (rows, dim) to (rows / 2, dim). Without pairs they are as
 * they were. */
INLINE const unit *beside(const unit *from, unit *to, long rows, long dim, const int paired) {
    if (!paired) return from;
#if HAS_PAIRS
    const bf16 *first = (const bf16 *)from;
    for (long row = 0; row < rows; row += 2, first += 2 * dim)
        for (long d = 0; d < dim; d += LANES) {
            const ints low = __builtin_convertvector(*(const ushorts *)(first + d), ints);
            const ints high = __builtin_convertvector(*(const ushorts *)(first + dim + d), ints);
            *(ints *)(to + row / 2 * dim + d) = low | (high << 16);
        }
#endif
    return to;
}

INLINE lanes add_unit(lanes sum, unit a, lanes b, const int paired) {
#if HAS_PAIRS
    if (paired) return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
#endif
    union { unit bits; float value; } both = {a};
    return fused(spread(both.value), b, sum);
}

/* A product's arguments. */
#define FACTORS const unit *a, long a_stride, const unit *b, long b_stride, long units, float *c, long c_stride
#define OF_FACTORS a, a_stride, b, b_stride, units, c, c_stride

INLINE void few_rows(FACTORS, const int is_added, const int rows, const int vectors, const int paired) {
    lanes sums[LINES][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int n = 0; n < vectors; n++) sums[row][n] = is_added ? *(const lanes *)(c + row * c_stride + n * LANES) : (lanes){0};
    for (long at = 0; at < units; at++, b += b_stride) {
        lanes right[VECTORS];
        for (int n = 0; n < vectors; n++) right[n] = *(const lanes *)(b + n * LANES);
        for (int row = 0; row < rows; row++)
            for (int n = 0; n < vectors; n++) sums[row][n] = add_unit(sums[row][n], a[row * a_stride + at], right[n], paired);
    }
    for (int row = 0; row < rows; row++)
        for (int n = 0; n < vectors; n++) *(lanes *)(c + row * c_stride + n * LANES) = sums[row][n];
}

/* Each in a function of its own, which keeps its sums in registers: by rows (all, four, one) and vectors (four, two, one). */
#define SOME (LINES > 4 ? 4 : 1)
#define OWN(NAME, ADDED, ROWS, WIDE, PAIRED)                                                                           \
    static __attribute__((noinline)) void NAME(FACTORS) { few_rows(OF_FACTORS, ADDED, ROWS, WIDE, PAIRED); }
#define OF_ROWS(NAME, ADDED, ROWS, PAIRED)                                                                             \
    OWN(NAME##_four, ADDED, ROWS, VECTORS, PAIRED) OWN(NAME##_two, ADDED, ROWS, 2, PAIRED) OWN(NAME##_one, ADDED, ROWS, 1, PAIRED)
typedef void Few(FACTORS);
#define FORM(NAME, ADDED, PAIRED)                                                                                      \
    OF_ROWS(NAME##_all, ADDED, LINES, PAIRED)                                                                          \
    OF_ROWS(NAME##_some, ADDED, SOME, PAIRED)                                                                          \
    OF_ROWS(NAME##_single, ADDED, 1, PAIRED)                                                                           \
    static Few *const NAME[3][3] = {{NAME##_all_four, NAME##_all_two, NAME##_all_one},                                 \
                                    {NAME##_some_four, NAME##_some_two, NAME##_some_one},                              \
                                    {NAME##_single_four, NAME##_single_two, NAME##_single_one}};
FORM(floats, 0, 0)
FORM(floats_added, 1, 0)
#if HAS_PAIRS
FORM(pairs, 0, 1)
FORM(pairs_added, 1, 1)
#else
#define pairs floats
#define pairs_added floats_added
#endif

/* C (rows, columns) = A (rows, units) B (units, columns), added to what is there or not. Columns are a multiple of LANES. */
INLINE void product(const unit *a, long a_stride, const unit *b, long b_stride, long units, float *c, long c_stride,
                    long rows, long columns, const int is_added, const int paired) {
    Few *const(*const few)[3] = paired ? is_added ? pairs_added : pairs : is_added ? floats_added : floats;
    for (long column = 0, vectors; column < columns; column += vectors * LANES) {
        const long wide = (columns - column) / LANES;
        vectors = wide >= VECTORS ? VECTORS : wide >= 2 ? 2 : 1;
        for (long row = 0, some; row < rows; row += some) {
            const long left = rows - row;
            some = left >= LINES && left != 2 * SOME ? LINES : left >= SOME ? SOME : 1;
            few[some == LINES ? 0 : some == SOME ? 1 : 2][vectors == VECTORS ? 0 : vectors == 2 ? 1 : 2](
                a + row * a_stride, a_stride, b + column, b_stride, units, c + row * c_stride + column, c_stride);
        }
    }
}

/* The first place that a query sees. */
INLINE long first_seen(const Job *job, long query) {
    long first = job->window > 0 ? larger(0, query - job->window + 1) : 0;
    return job->chunk > 0 ? larger(first, query / job->chunk * job->chunk) : first;
}

/* One behind the last query that sees one of the places before `end`. */
INLINE long last_seeing(const Job *job, long end, long length) {
    long last = job->window > 0 ? smaller(length, end - 1 + job->window) : length;
    return job->chunk > 0 ? smaller(last, ((end - 1) / job->chunk + 1) * job->chunk) : last;
}

/* Units of one row of floats, or of two neighbouring ones side by side. */
INLINE void pack(const float *from, unit *to, long columns, const int paired) {
    for (long d = 0; d < columns; d += LANES) {
#if HAS_PAIRS
        if (paired) {
            put_lanes(to, d, *(const lanes *)(from + d), 0);
            continue;
        }
#endif
        *(lanes *)(to + d) = *(const lanes *)(from + d);
    }
}

INLINE void pack_two(const float *first, const float *second, unit *to, long columns, const int paired) {
    for (long d = 0; d < columns; d += LANES) {
#if HAS_PAIRS
        if (paired) {
            const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(*(const __m512_u *)(first + d)));
            const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(*(const __m512_u *)(second + d)));
            _mm512_storeu_si512(to + d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            continue;
        }
#endif
        *(lanes *)(to + d) = *(const lanes *)(first + d);
        *(lanes *)(to + PANEL + d) = *(const lanes *)(second + d);
    }
}

/* Scores from `first` to `last` become shares of one, times what is returned; all others are 0. */
INLINE float share(float *scores, long first, long last, long width, float scale, float *most) {
    float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
    for (long at = first; at <= last; at++) largest = scores[at] > largest ? scores[at] : largest;
    *most = largest * scale;
    for (long at = first; at <= last; at++) scores[at] = exponential((scores[at] - largest) * scale);
#pragma omp simd reduction(+ : sum)
    for (long at = first; at <= last; at++) sum += scores[at];
    memset(scores, 0, first * sizeof *scores);
    memset(scores + last + 1, 0, (width - last - 1) * sizeof *scores);
    return sum;
}

INLINE void write_row(void *to, const float *from, long dim, float factor, int is_wide) {
    if (is_wide)
        for (long d = 0; d < dim; d++) ((float *)to)[d] = from[d] * factor;
    else
        for (long d = 0; d < dim; d++) ((bf16 *)to)[d] = narrow(from[d] * factor);
}

/* Units of scratch that one thread needs. */
static long room_of(const Job *job, long longest, int is_back) {
    const long length = up_to(longest, BLOCK), dim = job->dim;
    if (!is_back) return 3 * length * dim + FEW * (2 * length + 2 * dim);
    return 6 * length * dim + 2 * length + PANEL * dim * 7 + BLOCK * PANEL * 5;
}

INLINE void forward(const Job *job, long document, long head, unit *scratch, const int paired) {
    const int64_t *rows = job->rows + job->starts[document];
    const long length = job->starts[document + 1] - job->starts[document], own = job->own[document];
    const long dim = job->dim, width = units_of(dim, paired), padded = up_to(length, PANEL);
    const long kv_head = head / (job->heads / job->kv_heads), panel = width * PANEL;
    unit *taken = scratch, *turned = taken + padded * dim, *values = turned + padded * dim, *queries = values + padded * dim;
    unit *shares = queries + FEW * dim;
    float *scores = (float *)(shares + FEW * padded), *sums = scores + FEW * padded;
    take(job, &job->k, kv_head, rows, 0, length, padded, taken, paired);
    for (long at = 0; at < padded; at += PANEL) turn(taken + at * width, width, turned + at / PANEL * panel, PANEL, PANEL, width);
    take(job, &job->v, kv_head, rows, 0, length, padded, taken, paired);
    const unit *beside_each = beside(taken, values, padded, dim, paired);
    for (long start = own; start < length; start += FEW) {
        const long end = smaller(start + FEW, length), first = first_seen(job, start) / PANEL * PANEL;
        const long last = up_to(end, PANEL), seen = last - first;
        take(job, &job->q, head, rows, start, end, end, queries, paired);
        for (long at = first; at < last; at += PANEL)
            product(queries, width, turned + at / PANEL * panel, PANEL, width, scores + at - first, seen, end - start, PANEL, 0, paired);
        float parts[FEW];
        for (long query = start; query < end; query++) {
            float *line = scores + (query - start) * seen, most;
            parts[query - start] = share(line, first_seen(job, query) - first, query - first, seen, job->scale, &most);
            job->logs[head * job->tokens + rows[query]] = most + logf(parts[query - start]);
            pack(line, shares + (query - start) * units_of(seen, paired), seen, paired);
        }
        const long units = units_of(seen, paired);
        product(shares, units, beside_each + units_of(first, paired) * dim, dim, units, sums, dim, end - start, dim, 0, paired);
        for (long query = start; query < end; query++)
            write_row((char *)job->made + (rows[query] * job->heads + head) * dim * (job->is_wide ? 4 : 2),
                      sums + (query - start) * dim, dim, 1 / parts[query - start], job->is_wide);
    }
}

/* What a block of queries says of the keys from `key` on: shares and the gradients of scores, from both products; those that are not
 * seen are 0. */
INLINE void pull(const Job *job, float *shares, float *grads, const float *logs, const float *means, long start, long end,
                 long key, long key_end, long length) {
    const int is_whole = first_seen(job, end - 1) <= key && key_end - 1 <= start && key_end <= length;
    const long wide = key_end - key;
    for (long query = start; query < end; query++, shares += PANEL, grads += PANEL) {
        const float log = logs[query], mean = means[query], scale = job->scale;
        for (long at = 0; at < wide; at++) shares[at] = exponential(shares[at] * scale - log);
        if (!is_whole) {
            const long first = first_seen(job, query) - key, last = query - key;
            for (long at = 0; at < wide; at++) shares[at] = at < first || at > last ? 0 : shares[at];
        }
        for (long at = 0; at < wide; at++) grads[at] = shares[at] == 0 ? 0 : shares[at] * (grads[at] - mean) * scale;
    }
}

/* Put (dim, PANEL) of the keys from `key` on to what other documents have said of them. */
INLINE void put(const Job *job, float *all, long head, const int64_t *rows, const float *from, float *turned, long key, long end) {
    turn((const unit *)from, PANEL, (unit *)turned, job->dim, job->dim, PANEL);
    for (long at = key; at < end; at++) {
        float *to = all + (head * job->tokens + rows[at]) * job->dim;
        for (long d = 0; d < job->dim; d++) to[d] += turned[(at - key) * job->dim + d];
    }
}

INLINE void backward(const Job *job, long document, long head, unit *scratch, const int paired) {
    const int64_t *rows = job->rows + job->starts[document];
    const long length = job->starts[document + 1] - job->starts[document], own = job->own[document];
    const long base = own / 2 * 2, span = up_to(length - base, LANES); /* places whose queries are held */
    const long dim = job->dim, width = units_of(dim, paired), across = units_of(span, paired);
    const long kv_head = head / (job->heads / job->kv_heads), keys_across = units_of(PANEL, paired);
    unit *queries = scratch, *queries_turned = queries + span * dim, *pulls = queries_turned + span * dim;
    unit *pulls_turned = pulls + span * dim, *between = pulls_turned + span * dim;
    float *of_queries = (float *)(between + span * dim), *logs = of_queries + span * dim, *means = logs + span;
    unit *keys = (unit *)(means + span), *keys_turned = keys + PANEL * dim, *values_turned = keys_turned + PANEL * dim;
    unit *keys_beside = values_turned + PANEL * dim;
    float *of_keys = (float *)(keys_beside + PANEL * dim), *of_values = of_keys + PANEL * dim, *turned = of_values + PANEL * dim;
    float *shares = turned + PANEL * dim, *grads = shares + BLOCK * PANEL;
    unit *shares_beside = (unit *)(grads + BLOCK * PANEL), *grads_beside = shares_beside + BLOCK * PANEL;
    unit *grads_packed = grads_beside + BLOCK * PANEL;
    if (own >= length) return;
    take(job, &job->q, head, rows, base, length, base + span, queries, paired);
    turn(beside(queries, between, span, dim, paired), dim, queries_turned, across, across, dim);
    take(job, &job->grad, head, rows, base, length, base + span, pulls, paired);
    memset(pulls, 0, (own - base) * width * sizeof *pulls); /* asked in another document */
    turn(beside(pulls, between, span, dim, paired), dim, pulls_turned, across, across, dim);
    memset(of_queries, 0, span * dim * sizeof *of_queries);
    for (long at = base; at < base + span; at++) {
        logs[at - base] = INFINITY; /* whose shares are 0 */
        means[at - base] = 0;
        if (at < own || at >= length) continue;
        logs[at - base] = job->logs[head * job->tokens + rows[at]];
        const char *out = row_of(&job->out, rows[at], head, job->is_wide), *grad = row_of(&job->grad, rows[at], head, job->is_wide);
        float sum = 0;
        if (job->is_wide)
            for (long d = 0; d < dim; d++) sum += ((const float *)out)[d] * ((const float *)grad)[d];
        else
            for (long d = 0; d < dim; d++) sum += wide(((const bf16 *)out)[d]) * wide(((const bf16 *)grad)[d]);
        means[at - base] = sum;
    }
    for (long key = 0; key < length; key += PANEL) {
        const long end = smaller(key + PANEL, length), last = last_seeing(job, end, length);
        const long begin = base + (key > base ? (key - base) / BLOCK * BLOCK : 0), wide = up_to(end - key, LANES);
        if (begin >= last) continue;
        take(job, &job->v, kv_head, rows, key, end, key + PANEL, keys, paired);
        turn(keys, width, values_turned, PANEL, PANEL, width);
        take(job, &job->k, kv_head, rows, key, end, key + PANEL, keys, paired);
        turn(keys, width, keys_turned, PANEL, PANEL, width);
        const unit *beside_each = beside(keys, keys_beside, PANEL, dim, paired);
        memset(of_keys, 0, 2 * PANEL * dim * sizeof *of_keys);
        for (long start = begin; start < last; start += BLOCK) {
            const long high = smaller(BLOCK, base + span - start), place = start - base;
            const long across_place = units_of(place, paired), units = units_of(high, paired);
            product(queries + place * width, width, keys_turned, PANEL, width, shares, PANEL, high, wide, 0, paired);
            product(pulls + place * width, width, values_turned, PANEL, width, grads, PANEL, high, wide, 0, paired);
            pull(job, shares, grads, logs - base, means - base, start, start + high, key, key + wide, length);
            for (long row = 0; row < high; row += 2) {
                const long at = row * PANEL, to = units_of(row, paired) * PANEL;
                pack_two(shares + at, shares + at + PANEL, shares_beside + to, wide, paired);
                pack_two(grads + at, grads + at + PANEL, grads_beside + to, wide, paired);
            }
            for (long row = 0; row < high; row++) pack(grads + row * PANEL, grads_packed + row * keys_across, wide, paired);
            product(pulls_turned + across_place, across, shares_beside, PANEL, units, of_values, PANEL, dim, wide, 1, paired);
            product(queries_turned + across_place, across, grads_beside, PANEL, units, of_keys, PANEL, dim, wide, 1, paired);
            product(grads_packed, keys_across, beside_each, dim, units_of(wide, paired), of_queries + place * dim, dim, high, dim,
                    1, paired);
        }
        put(job, job->of_keys, head, rows, of_keys, turned, key, end);
        put(job, job->of_values, head, rows, of_values, turned, key, end);
    }
    for (long at = own; at < length; at++)
        write_row((char *)row_of(&job->q, rows[at], head, job->is_wide) - (const char *)job->q.data + (char *)job->made,
                  of_queries + (at - base) * dim, dim, 1, job->is_wide);
}

/* Whether each document of each head was worked on. */
static int each(const Job *job, int is_shared, int is_back, int threads) {
    const long together = is_shared ? job->documents : 1; /* they add to the same keys, in their order */
    long longest = 0;
    for (long at = 0; at < job->documents; at++) longest = larger(longest, job->starts[at + 1] - job->starts[at]);
    const long bytes = up_to(room_of(job, longest, is_back) * sizeof(unit), 64);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        unit *scratch = aligned_alloc(64, bytes);
        if (!scratch) failed = 1;
#pragma omp for schedule(dynamic)
        for (long task = 0; task < job->documents / together * job->heads; task++)
            for (long at = 0; scratch && at < together; at++) {
                const long document = task / job->heads * together + at, head = task % job->heads;
#if HAS_PAIRS
                if (!job->is_wide) {
                    if (is_back) backward(job, document, head, scratch, 1);
                    else forward(job, document, head, scratch, 1);
                    continue;
                }
#endif
                if (is_back) backward(job, document, head, scratch, 0);
                else forward(job, document, head, scratch, 0);
            }
        free(scratch);
    }
    return failed;
}

/* out (tokens, heads, dim), contiguous, and logs (heads, tokens), from q (tokens, heads, dim), k and v (tokens, kv_heads,
 * dim), each with a stride of rows and of heads. rows, starts (documents + 1) and own say where documents lie; window and
 * chunk are 0 where there is none. dim is a multiple of 16. Returns 1 when there was no memory. */
int danlu_documents_forward(const void *q, long q_row, long q_head, const void *k, long k_row, long k_head, const void *v,
                            long v_row, long v_head, const int64_t *rows, const int64_t *starts, const int64_t *own,
                            void *out, float *logs, long documents, long tokens, long heads, long kv_heads, long dim,
                            long window, long chunk, float scale, int is_wide, int threads) {
    const Job job = {.q = {q, q_row, q_head}, .k = {k, k_row, k_head}, .v = {v, v_row, v_head}, .made = out, .logs = logs,
                     .rows = rows, .starts = starts, .own = own, .documents = documents, .tokens = tokens, .heads = heads,
                     .kv_heads = kv_heads, .dim = dim, .window = window, .chunk = chunk, .scale = scale, .is_wide = is_wide};
    return each(&job, 0, 0, threads);
}

/* The sum over the heads that share a key head, in their order. */
static void gather(const Job *job, const float *all, void *to, long row, long head, int threads) {
    const long group = job->heads / job->kv_heads, dim = job->dim, bytes = job->is_wide ? 4 : 2;
#pragma omp parallel for num_threads(threads)
    for (long token = 0; token < job->tokens; token++)
        for (long kv_head = 0; kv_head < job->kv_heads; kv_head++) {
            const float *from = all + (kv_head * group * job->tokens + token) * dim;
            char *row_made = (char *)to + (token * row + kv_head * head) * bytes;
            for (long d = 0; d < dim; d += LANES) {
                lanes sum = *(const lanes *)(from + d);
                for (long other = 1; other < group; other++) sum += *(const lanes *)(from + other * job->tokens * dim + d);
                write_row(row_made + d * bytes, (const float *)&sum, LANES, 1, job->is_wide);
            }
        }
}

/* Gradients of q, k and v, laid out as they are, from that of out. is_shared: documents have tokens in common. */
int danlu_documents_backward(const void *q, long q_row, long q_head, const void *k, long k_row, long k_head, const void *v,
                             long v_row, long v_head, const void *out, const void *grad, long grad_row, long grad_head,
                             const int64_t *rows, const int64_t *starts, const int64_t *own, const float *logs, void *of_q,
                             void *of_k, void *of_v, long documents, long tokens, long heads, long kv_heads, long dim,
                             long window, long chunk, float scale, int is_shared, int is_wide, int threads) {
    float *sums = calloc(2 * tokens * heads * dim, sizeof *sums);
    if (!sums) return 1;
    const Job job = {.q = {q, q_row, q_head}, .k = {k, k_row, k_head}, .v = {v, v_row, v_head}, .out = {out, heads * dim, dim},
                     .grad = {grad, grad_row, grad_head}, .made = of_q, .logs = (float *)logs, .rows = rows, .starts = starts,
                     .own = own, .of_keys = sums, .of_values = sums + tokens * heads * dim, .documents = documents,
                     .tokens = tokens, .heads = heads, .kv_heads = kv_heads, .dim = dim, .window = window, .chunk = chunk,
                     .scale = scale, .is_wide = is_wide};
    const int failed = each(&job, is_shared, 1, threads);
    gather(&job, job.of_keys, of_k, k_row, k_head, threads);
    gather(&job, job.of_values, of_v, v_row, v_head, threads);
    free(sums);
    return failed;
}
