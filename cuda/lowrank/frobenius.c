/* SPDX-License-Identifier: Apache-2.0
 * frobenius.c - || u v ||_F^2 = < u^T u, v v^T > and its gradients; see the CPU's file of that name. The Gram matrices stay in
 * the type that sums are kept in, so in 16-bit types the products of the backward have mixed operands and run on our own
 * kernel. */
#include "lowrank/frobenius.h"

#include "core/arena.h"
#include "core/check.h"
#include "gemm/product.h"
#include "lowrank/lowrank.h"
#include "lowrank/routes.h"

struct frobenius {
  const struct lath_frobenius *a;
  lath_dtype sums;
  void *partial; /* of the value */
  void *gram;    /* (rank, rank), scaled */
};

static struct frobenius prepare(const struct lath_frobenius *a, struct lath_arena *arena) {
  struct frobenius f = {.a = a, .sums = lath_sum_type(a->dtype)};
  f.partial = lath_cuda_take(arena, LATH_F64, 1, LATH_FROBENIUS_PARTS);
  f.gram = lath_cuda_take(arena, f.sums, a->rank, a->rank);
  return f;
}

lath_status lath_cuda_frobenius_workspace(const struct lath_frobenius *a, const struct lath_cuda *cuda, size_t *bytes) {
  struct lath_arena arena = lath_arena_on(NULL);
  if (!a || !cuda || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rank, a->rank, a->in}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rank, a->rank, a->out}, 3));
  (void)prepare(a, &arena);
  return lath_arena_bytes(&arena, 0, bytes);
}

static lath_status begin(struct frobenius *f, const struct lath_frobenius *a, const void *scalar, struct lath_cuda *cuda) {
  size_t bytes;
  LATH_TRY(lath_cuda_frobenius_workspace(a, cuda, &bytes));
  LATH_TRY(lath_frobenius_check_operands(a));
  if (!scalar) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  *f = prepare(a, &arena);
  cuda->error = 0;
  return LATH_OK;
}

static lath_status form_gram_v(const struct frobenius *f, struct lath_cuda *cuda) {
  const struct lath_frobenius *a = f->a;
  const struct lath_cuda_gemm gemm = {.a_type = a->dtype,
                                      .b_type = a->dtype,
                                      .c_type = f->sums,
                                      .m = a->rank,
                                      .n = a->rank,
                                      .k = a->in,
                                      .a = a->v,
                                      .s_a = a->s_v,
                                      .b = a->v,
                                      .s_b = a->s_v,
                                      .b_transposed = 1,
                                      .c = a->gram_v,
                                      .s_c = a->rank};
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_gram_u(const struct frobenius *f, struct lath_cuda *cuda) {
  const struct lath_frobenius *a = f->a;
  const struct lath_cuda_gemm gemm = {.a_type = a->dtype,
                                      .b_type = a->dtype,
                                      .c_type = f->sums,
                                      .m = a->rank,
                                      .n = a->rank,
                                      .k = a->out,
                                      .a = a->u,
                                      .s_a = a->s_u,
                                      .a_transposed = 1,
                                      .b = a->u,
                                      .s_b = a->s_u,
                                      .c = a->gram_u,
                                      .s_c = a->rank};
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_frobenius(const struct lath_frobenius *a, void *value, struct lath_cuda *cuda) {
  struct frobenius f;
  LATH_TRY(begin(&f, a, value, cuda));
  LATH_TRY(form_gram_v(&f, cuda));
  LATH_TRY(form_gram_u(&f, cuda));
  return lath_device_check(cuda,
                           lath_cuda_dot(f.sums, a->rank * a->rank, a->gram_v, a->gram_u, value, f.partial, cuda->stream));
}

static lath_status scale_gram(const struct frobenius *f, const void *gram, const void *scale, struct lath_cuda *cuda) {
  return lath_device_check(cuda, lath_cuda_scale(f->sums, f->a->rank * f->a->rank, gram, scale, f->gram, cuda->stream));
}

static lath_status form_du(const struct frobenius *f, struct lath_cuda *cuda) {
  const struct lath_frobenius *a = f->a;
  const struct lath_cuda_gemm gemm = {.a_type = a->dtype,
                                      .b_type = f->sums,
                                      .c_type = a->dtype,
                                      .m = a->out,
                                      .n = a->rank,
                                      .k = a->rank,
                                      .a = a->u,
                                      .s_a = a->s_u,
                                      .b = f->gram,
                                      .s_b = a->rank,
                                      .c = a->du,
                                      .s_c = a->rank};
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_dv(const struct frobenius *f, struct lath_cuda *cuda) {
  const struct lath_frobenius *a = f->a;
  const struct lath_cuda_gemm gemm = {.a_type = f->sums,
                                      .b_type = a->dtype,
                                      .c_type = a->dtype,
                                      .m = a->rank,
                                      .n = a->in,
                                      .k = a->rank,
                                      .a = f->gram,
                                      .s_a = a->rank,
                                      .b = a->v,
                                      .s_b = a->s_v,
                                      .c = a->dv,
                                      .s_c = a->in};
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_frobenius_backward(const struct lath_frobenius *a, const void *scale, struct lath_cuda *cuda) {
  struct frobenius f;
  LATH_TRY(begin(&f, a, scale, cuda));
  if (a->du) {
    LATH_TRY(scale_gram(&f, a->gram_v, scale, cuda));
    LATH_TRY(form_du(&f, cuda));
  }
  if (!a->dv) return LATH_OK;
  LATH_TRY(scale_gram(&f, a->gram_u, scale, cuda));
  return form_dv(&f, cuda);
}
