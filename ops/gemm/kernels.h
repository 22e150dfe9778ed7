/* SPDX-License-Identifier: Apache-2.0
 * kernels.h - the table of inner kernels, one instance per instruction set.
 *
 * Everything here works on float, on one thread, and on blocks that the drivers in gemm.c have cut to size. Vocabulary: a product
 * C = A B with A (m, k), B (k, n), C (m, n); `s_x` is the row stride of x; a *panel* is a block of `width` columns of B stored as
 * (k, width), width = vecs * lanes, padded with zeros. */
#ifndef LATH_GEMM_KERNELS_H
#define LATH_GEMM_KERNELS_H

#include "lath.h"

#define LATH_MAX_VECS 4  /* widest register tile, in vectors */
#define LATH_MAX_ROWS 16 /* tallest */

/* C (rows, width) = bias + A B, or C += A B with `accumulate`; only the first n columns are written. The tile's rows and vectors
 * are fixed in the kernel. A is read in place: a[i * s_a + k] (LATH_A_ROWS) or a[k * s_a + i] (LATH_A_COLUMNS: packed, or A
 * transposed in memory). B rows are s_b apart: a panel, or B in place where all `width` columns exist. */
typedef void (*lath_panel_fn)(int64_t k, const float *a, int64_t s_a, const float *b, int64_t s_b, float *c, int64_t s_c,
                              const float *bias, int accumulate, int64_t n);

enum { LATH_A_ROWS = 0, LATH_A_COLUMNS = 1 };

struct lath_kernels {
  int lanes;
  int rows[LATH_MAX_VECS + 1]; /* tallest tile of each width */
  lath_panel_fn panel[2][LATH_MAX_VECS + 1][LATH_MAX_ROWS + 1];

  /* C (m, n) = A B^T + bias with A (m, k) and B (n, k) both read along their rows: no packing at all. For long k. */
  void (*dot)(int64_t m, int64_t n, int64_t k, const float *a, int64_t s_a, const float *b, int64_t s_b, const float *bias,
              float *c, int64_t s_c);

  /* One panel from n <= width columns: of B^T given as (n, k) rows, or of B given as (k, n) rows. */
  void (*pack_transposed)(int64_t n, int64_t k, const float *w, int64_t s_w, int64_t width, float *panel);
  void (*pack_plain)(int64_t n, int64_t k, const float *w, int64_t s_w, int64_t width, float *panel);

  /* C (m, n) = P W^T + bias for few rows m and short k, where packing W (n, k) would cost more than it saves: W is the broadcast
   * side, P^T the panel (k, round_up(m, lanes)), and each tile is turned on its way out. */
  void (*expand)(int64_t m, int64_t n, int64_t k, const float *p_panel, const float *w, int64_t s_w, const float *bias,
                 float *c, int64_t s_c);

  void (*add_rows)(int64_t m, int64_t n, const float *a, int64_t s_a, float *sum); /* sum[j] += a[0][j] + a[1][j] + ... */
};

extern const struct lath_kernels lath_kernels_generic;
#if defined(__x86_64__)
extern const struct lath_kernels lath_kernels_avx2, lath_kernels_avx512;
#endif

const struct lath_kernels *lath_kernels(void); /* those of lath_cpu_isa() */

#endif
