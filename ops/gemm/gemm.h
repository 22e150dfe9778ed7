/* SPDX-License-Identifier: Apache-2.0
 * gemm.h - inside the library: the packed product that every dense-shaped piece of work goes through.
 *
 * C (m, n) = A (m, k) B (k, n) + bias, all float. B comes as panels, packed or in place; A is read in place or packed block by block.
 * One call is one thread's work: families split rows or columns among threads and call it on their share. */
#ifndef LATH_GEMM_GEMM_H
#define LATH_GEMM_GEMM_H

#include "core/arena.h"
#include "gemm/kernels.h"

/* B (k, n) as blocks of `width` columns: packed, panel j at packed + j * k * width, or in place, or in place with its rows in a list.
 * A listed B has room: whole vectors may be read beyond column n. */
struct lath_panels {
  int64_t n, k, width;
  int vecs;
  float *packed;     /* NULL: in place */
  const float *rows; /* B in place, its row stride `stride` */
  int64_t stride;
  const int64_t *listed; /* or row k at rows + listed[k] */
  const int64_t *starts; /* of the panels of a listed B, from there; NULL: j * width */
};

/* The panel width, in vectors, that suits n columns best, for products with m rows at a time. */
int lath_panel_vecs(const struct lath_kernels *kernels, int64_t m, int64_t n);

/* Packed panels in memory taken from the arena; filled by lath_pack. */
struct lath_panels lath_panels_take(const struct lath_kernels *kernels, struct lath_arena *arena, int64_t m, int64_t n,
                                    int64_t k);
int64_t lath_panels_count(const struct lath_panels *panels);

/* Fills panels [from, to) of B. `transposed`: w holds B^T, (n, k) rows, the layout of a torch weight; else B, (k, n) rows. */
void lath_pack(const struct lath_kernels *kernels, const struct lath_panels *panels, int64_t from, int64_t to, const float *w,
               int64_t s_w, int transposed);

/* B in place, with rows s_b apart or listed. */
struct lath_panels lath_panels_listed(const struct lath_kernels *kernels, int64_t n, int64_t k, const float *b,
                                      const int64_t *listed);
struct lath_panels lath_panels_in_place(const struct lath_kernels *kernels, int64_t n, int64_t k, const float *b, int64_t s_b);

struct lath_product {
  int64_t m;
  const float *a;
  int64_t s_a;
  int a_order;           /* LATH_A_ROWS: a[i * s_a + k], LATH_A_COLUMNS: a[k * s_a + i] */
  const int64_t *a_rows; /* LATH_A_ROWS only: row i at a + a_rows[i] instead; NULL: i * s_a */
  int a_stays;           /* 1: A is read in place, however long k is: its rows lie at a distance that suits L1 */
  const struct lath_panels *b;
  enum lath_start start;
  const float *bias; /* (n) or (m), as `start` says, or NULL */
  float *c;
  int64_t s_c;
  float *scratch; /* lath_product_scratch floats, one per thread */
};

int64_t lath_product_scratch(const struct lath_kernels *kernels);
void lath_multiply(const struct lath_kernels *kernels, const struct lath_product *product);

/* Whether so few rows use so many weights (numbers) that rearranging the weights would cost more than it saves. */
int lath_few_rows(int64_t rows, int64_t weights);

/* C (m, n) = A W^T + bias with A (m, k) for few rows m, W (n, k) read in place and once. `scratch`: lath_few_rows_scratch floats. */
int64_t lath_few_rows_scratch(const struct lath_kernels *kernels, int64_t m, int64_t k);
void lath_multiply_few_rows(const struct lath_kernels *kernels, int64_t m, int64_t n, int64_t k, const float *a, int64_t s_a,
                            const float *w, int64_t s_w, const float *bias, float *c, int64_t s_c, float *scratch);

/* A whole product on the host's threads: B is packed once, then threads share the rows of C. With few rows and B transposed, threads
 * share the columns and nothing is packed. */
struct lath_gemm {
  int64_t m, n, k;
  const float *a;
  int64_t s_a;
  int a_order;
  const float *b;
  int64_t s_b;
  int b_transposed; /* b holds B^T, (n, k) rows */
  const float *bias;
  float *c;
  int64_t s_c;
  /* set by lath_gemm_take */
  int64_t workers, scratch_size;
  struct lath_panels panels;
  float *scratch;
};

/* C (m, n) = A B, A B^T or A^T B, in the letters of BLAS: B (k, n), or (n, k) rows in memory; A (m, k), or (k, m). Without a bias. */
static inline struct lath_gemm lath_gemm_nn(int64_t m, int64_t n, int64_t k, const float *a, int64_t s_a, const float *b,
                                            int64_t s_b, float *c, int64_t s_c) {
  return (struct lath_gemm){.m = m, .n = n, .k = k, .a = a, .s_a = s_a, .b = b, .s_b = s_b, .c = c, .s_c = s_c};
}

static inline struct lath_gemm lath_gemm_nt(int64_t m, int64_t n, int64_t k, const float *a, int64_t s_a, const float *b,
                                            int64_t s_b, float *c, int64_t s_c) {
  struct lath_gemm gemm = lath_gemm_nn(m, n, k, a, s_a, b, s_b, c, s_c);
  gemm.b_transposed = 1;
  return gemm;
}

static inline struct lath_gemm lath_gemm_tn(int64_t m, int64_t n, int64_t k, const float *a, int64_t s_a, const float *b,
                                            int64_t s_b, float *c, int64_t s_c) {
  struct lath_gemm gemm = lath_gemm_nn(m, n, k, a, s_a, b, s_b, c, s_c);
  gemm.a_order = LATH_A_COLUMNS;
  return gemm;
}

/* Needs m, n, k, a_order and b_transposed; a temporary of the arena that the next product may use again: pass a copy. */
void lath_gemm_take(struct lath_gemm *gemm, const struct lath_host *host, struct lath_arena *arena);
lath_status lath_gemm_run(struct lath_gemm *gemm, const struct lath_host *host);

/* Products that run one after the other in the same rest of a workspace: what one of them takes, and the run itself. */
void lath_gemm_reserve(struct lath_gemm gemm, const struct lath_host *host, struct lath_arena rest, struct lath_arena *arena);
lath_status lath_gemm_in(struct lath_gemm gemm, const struct lath_host *host, struct lath_arena rest);

#endif
