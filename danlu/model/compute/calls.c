/* Kernels called one behind the other, which Python would take longer to call than they take. calls.py writes the list. */
#include "numbers.h"

enum { PRODUCT, ADD_NORM, ROTATE };

typedef int Product(const bf16 *x, long rows, const void *weights, const void *scales, const float *bias, bf16 *out,
                    long outputs, long inputs, long together, int format, int is_paired, int is_gated, int way, int threads);
typedef void AddNorm(const bf16 *x, const bf16 *y, bf16 *sum, const float *weight, bf16 *out, long rows, long dim, float eps,
                     int threads);
typedef void Rotate(const bf16 *x, long stride, const bf16 *cosine, const bf16 *sine, bf16 *out, long tokens, long heads,
                    long dim, long turned, int in_steps, int threads);

/* One of them; what a kernel does not have is 0. x is what is given, where it is NULL. */
typedef struct {
    long kind;
    const void *function, *x, *y, *weights, *scales, *bias;
    void *sum, *out;
    long outputs, inputs, together, format, is_paired, is_gated, way, stride, heads, dim;
    double eps;
} Call;

/* All of them, over the rows of `tokens` tokens. Returns 1 when there was no memory. */
int danlu_calls(const Call *calls, long count, const bf16 *given, const bf16 *cosine, const bf16 *sine, long turned,
                long tokens, int threads) {
    int failed = 0;
    for (const Call *call = calls; call < calls + count; call++) {
        const bf16 *x = call->x ? call->x : given;
        switch (call->kind) {
        case PRODUCT:
            failed |= ((Product *)call->function)(x, tokens, call->weights, call->scales, call->bias, call->out,
                                                  call->outputs, call->inputs, call->together, call->format,
                                                  call->is_paired, call->is_gated, call->way, threads);
            break;
        case ADD_NORM:
            ((AddNorm *)call->function)(x, call->y, call->sum, call->weights, call->out, tokens, call->dim, call->eps, threads);
            break;
        case ROTATE:
            ((Rotate *)call->function)(x, call->stride, cosine, sine, call->out, tokens, call->heads, call->dim, turned, 0,
                                       threads);
        }
    }
    return failed;
}
