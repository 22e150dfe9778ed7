/* SPDX-License-Identifier: Apache-2.0
 *
 * lath.h - the C interface of liblath: argument structs, status codes and every entry point.
 *
 * The library knows neither torch nor CUDA nor C++. It never allocates, prints, exits or raises, and keeps no state except a
 * dispatch table that is filled once. The caller owns every buffer, and asks for the size of the workspace first.
 *
 * Conventions
 *   - Matrices are row-major. `s_x` is the distance in elements between two rows of x; elements of a row are adjacent.
 *     A row stride may be 0 for an input (an expanded tensor), never for an output.
 *   - Extents and strides are int64_t, in elements. An extent may be 0: the entry then writes what the formula gives for
 *     empty sums and returns LATH_OK.
 *   - Buffers need the alignment of their element type and no more. Outputs must not overlap inputs or each other.
 *   - A result does not depend on the number of threads: for each output element the order of additions is fixed by the
 *     shape alone.
 *   - Every fast function has a twin with the suffix `_ref`: the same contract in plain loops, the oracle of the tests.
 */
#ifndef LATH_H
#define LATH_H

#include <stddef.h>
#include <stdint.h>

#define LATH_VERSION "0.1.0"

#if defined(__GNUC__)
#define LATH_API __attribute__((visibility("default")))
#else
#define LATH_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---------------------------------------------------------------------------------------------------------- */

typedef enum lath_status {
  LATH_OK = 0,
  LATH_INVALID_ARGUMENT,  /* a null pointer, a negative extent, a stride shorter than a row */
  LATH_SIZE_OVERFLOW,     /* a product of extents does not fit the address space */
  LATH_UNSUPPORTED_DTYPE, /* this entry has no path for args->dtype */
  LATH_SMALL_WORKSPACE,   /* workspace_bytes is below what the matching _workspace query answers */
  LATH_HOST_FAILED,       /* host->parallel_for reported a failure; outputs are unspecified */
  LATH_DEVICE_FAILED      /* the GPU's runtime or its BLAS reported a failure; outputs are unspecified */
} lath_status;

/* One English sentence without a full stop; never NULL, also for values outside the enumeration. */
LATH_API const char *lath_status_text(lath_status status);

/* ---- element types ----------------------------------------------------------------------------------------------------- */

typedef enum lath_dtype {
  LATH_F32 = 0,
  LATH_F64,  /* plain loops in double precision: for gradient checks, not for speed */
  LATH_BF16, /* storage only: every product is accumulated in fp32 and rounded once, to nearest even */
  LATH_F16   /* storage only, likewise; GPU entries only, the others answer LATH_UNSUPPORTED_DTYPE */
} lath_dtype;

LATH_API size_t lath_dtype_size(lath_dtype dtype); /* bytes per element; 0 for an unknown type */

/* ---- processor ------------------------------------------------------------------------------------------------------------ */

typedef enum lath_isa { LATH_ISA_GENERIC = 0, LATH_ISA_AVX2, LATH_ISA_AVX512 } lath_isa;

/* The instruction set that the kernels use: the best that the processor has AND whose registers the operating system saves
 * (CPUID and XGETBV). The environment variable LATH_ISA=generic|avx2|avx512 lowers it; a wish above what the machine can run
 * is cut to what it can. Decided at the first call, then fixed. */
LATH_API lath_isa lath_cpu_isa(void);
LATH_API lath_isa lath_cpu_best_isa(void);      /* the same, deaf to LATH_ISA */
LATH_API int lath_cpu_multiplies_bf16(void);    /* 1: two bf16 at a time, which libraries use and lath does not */
LATH_API const char *lath_isa_name(lath_isa);   /* "generic", "avx2", "avx512" */
LATH_API lath_isa lath_cpu_force_isa(lath_isa); /* for tests: switches at run time, returns what is in force now */

/* ---- host services ---------------------------------------------------------------------------------------------------------- */

/* What the caller lends the library. Under torch this is torch's own intra-op pool. */
struct lath_host {
  void *ctx;
  /* Threads that parallel_for may use; at least 1. */
  int (*num_threads)(void *ctx);
  /* Calls body(arg, begin, end) for disjoint ranges that cover [0, n), perhaps from several threads, and returns when all
   * have returned. Non-zero: the host could not do it. */
  int (*parallel_for)(void *ctx, int64_t n, void (*body)(void *arg, int64_t begin, int64_t end), void *arg);
};

LATH_API extern const struct lath_host lath_serial_host; /* one thread, the caller's */

/* ---- linear: y = x w^T + bias ------------------------------------------------------------------------------------------------- */

struct lath_linear {
  lath_dtype dtype; /* of every operand */
  int64_t rows, in, out;
  const void *x; /* (rows, in) */
  int64_t s_x;
  const void *w; /* (out, in) */
  int64_t s_w;
  const void *bias; /* (out), or NULL */
  void *y;          /* (rows, out) */
  int64_t s_y;
  void *workspace;
  size_t workspace_bytes;
};

/* The query checks the operands as the entry does. */
LATH_API lath_status lath_linear_workspace(const struct lath_linear *args, const struct lath_host *host, size_t *bytes);
LATH_API lath_status lath_linear(const struct lath_linear *args, const struct lath_host *host);
LATH_API lath_status lath_linear_ref(const struct lath_linear *args);

/* ---- low-rank linear: y = (x v^T + inner_bias) u^T + bias ------------------------------------------------------------------------ */

/* How the two factors are associated. The function and its gradients are the same up to rounding. */
typedef enum lath_association {
  LATH_AUTO = 0, /* the planner takes the cheaper one */
  LATH_FACTORED, /* (x v^T) u^T: rank (in + out) multiply-adds a row */
  LATH_MERGED    /* x (u v)^T: in out multiply-adds a row, and rank in out once per call; F64 stays factored */
} lath_association;

struct lath_lowrank_linear {
  lath_dtype dtype; /* of every operand but p */
  lath_association association;
  int64_t rows, in, rank, out;

  const void *x; /* (rows, in) */
  int64_t s_x;
  const void *v; /* (rank, in): the first factor, torch layout of nn.Linear(in, rank).weight */
  int64_t s_v;
  const void *u; /* (out, rank): the second factor, torch layout of nn.Linear(rank, out).weight */
  int64_t s_u;
  const void *inner_bias; /* (rank), or NULL */
  const void *bias;       /* (out), or NULL */

  void *y; /* (rows, out); forward only */
  int64_t s_y;

  /* The intermediate p = x v^T + inner_bias, (rows, rank), contiguous, in the type that sums are kept in (float for F32 and
   * BF16, double for F64); on a GPU in the type of x, which is what its matrix units read. Forward: written when not NULL and
   * the plan is factored. Backward: read when not NULL, else recomputed where it is needed. */
  void *p;

  const void *dy; /* (rows, out); backward only, as all that follow: NULL in the forward */
  int64_t s_dy;
  void *dx; /* (rows, in), or NULL: skipped, like each gradient below */
  int64_t s_dx;
  void *dv;           /* (rank, in) contiguous */
  void *du;           /* (out, rank) contiguous */
  void *d_inner_bias; /* (rank) */
  void *d_bias;       /* (out) */

  void *workspace;
  size_t workspace_bytes;
};

/* The route that a call takes. */
typedef enum lath_lowrank_kernel {
  LATH_LOWRANK_PLAIN = 0, /* plain loops: F64 */
  LATH_LOWRANK_ROWS,      /* few rows: weights are read in place, once */
  LATH_LOWRANK_TILES,     /* row tiles: weights packed once per call, the intermediate stays in cache */
  LATH_LOWRANK_MERGED,    /* u v is formed, then one dense product */
  LATH_LOWRANK_PRODUCTS,  /* GPU, as all that follow: one product after the other, by the BLAS library where there is one */
  LATH_LOWRANK_FUSED,     /* 16-bit types: both products in one kernel, the intermediate stays on chip */
  LATH_LOWRANK_FEW        /* few rows: each weight is read once, by all multiprocessors */
} lath_lowrank_kernel;

struct lath_lowrank_plan {
  lath_association association; /* never LATH_AUTO */
  lath_lowrank_kernel kernel;
  int64_t macs;          /* multiply-adds of the call under this plan (forward, or backward with every gradient) */
  int64_t dense_macs;    /* of the dense layer: rows in out, twice that for the backward */
  int save_intermediate; /* 1: for training, keeping p costs less time than computing it again */
};

/* Pure arithmetic on the shape; `backward` is 0 or 1. Overflowing products are LATH_SIZE_OVERFLOW. */
LATH_API lath_status lath_lowrank_linear_plan(const struct lath_lowrank_linear *args, int backward,
                                              struct lath_lowrank_plan *plan);

/* The queries look at dtype, extents and association, and at which pointers are NULL. */
LATH_API lath_status lath_lowrank_linear_workspace(const struct lath_lowrank_linear *args, const struct lath_host *host,
                                                   size_t *bytes);
LATH_API lath_status lath_lowrank_linear(const struct lath_lowrank_linear *args, const struct lath_host *host);
LATH_API lath_status lath_lowrank_linear_ref(const struct lath_lowrank_linear *args);

LATH_API lath_status lath_lowrank_linear_backward_workspace(const struct lath_lowrank_linear *args,
                                                            const struct lath_host *host, size_t *bytes);
LATH_API lath_status lath_lowrank_linear_backward(const struct lath_lowrank_linear *args, const struct lath_host *host);
LATH_API lath_status lath_lowrank_linear_backward_ref(const struct lath_lowrank_linear *args);

/* ---- low-rank conv2d: a thin convolution to `rank` channels, then one to `out` channels -------------------------------------------- */

/* How the kernel_h x kernel_w window is shared between the two. Groups are factored each on their own; per group
 *
 *   separable   v (rank, in, 1, kernel_w) along the rows of the image, then u (out, rank, kernel_h, 1) along its columns
 *   pointwise   v (rank, in, kernel_h, kernel_w), then u (out, rank, 1, 1)
 *
 * Stride, padding and dilation of an axis belong to the convolution that has the kernel of this axis. So in the separable form the
 * rows of padding above and below are zeros of the intermediate, without inner_bias. */
typedef enum lath_conv_form { LATH_SEPARABLE = 0, LATH_POINTWISE } lath_conv_form;

/* A batch of images, element (n, c, h, w) at data + n s_n + c s_c + h s_h + w s_w. Any strides for an input (0 for an expanded
 * tensor, for example); none of 0 for an output, except in an extent of 1. */
struct lath_images {
  void *data;
  int64_t s_n, s_c, s_h, s_w;
};

struct lath_lowrank_conv2d {
  lath_dtype dtype; /* of every operand but p */
  lath_conv_form form;
  int64_t batch, in, rank, out, groups; /* channels of x and y, multiples of groups; rank is that of one group */
  int64_t height, width;                /* of x */
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;

  struct lath_images x;   /* (batch, in, height, width) */
  const void *v;          /* (groups rank, in / groups, 1 or kernel_h, kernel_w) contiguous */
  const void *u;          /* (out, rank, kernel_h or 1, 1) contiguous */
  const void *inner_bias; /* (groups rank), or NULL */
  const void *bias;       /* (out), or NULL */
  struct lath_images y;   /* (batch, out, out_height, out_width), see lath_lowrank_conv2d_sizes; forward only */

  /* The intermediate, (batch, groups rank, p_height, out_width) contiguous, in the type that sums are kept in. Forward: written
   * when not NULL; rows that no window meets are zero. Backward: read when not NULL, else recomputed where it is needed. */
  void *p;

  struct lath_images dy; /* like y; backward only, as all that follow: NULL in the forward */
  struct lath_images dx; /* like x; data NULL: skipped, as each gradient below */
  void *dv, *du;         /* like v and u */
  void *d_inner_bias, *d_bias;

  void *workspace;
  size_t workspace_bytes;
};

struct lath_conv_sizes {
  int64_t out_height, out_width; /* of y */
  int64_t p_height; /* of the intermediate: that of x if separable, that of y if pointwise; its width is out_width */
};

/* The route that a call takes. The last two are products of the caller's library, for callers that have one: torch does. */
typedef enum lath_conv_kernel {
  LATH_CONV_PLAIN = 0, /* plain loops: F64 */
  LATH_CONV_FUSED,     /* both convolutions on the packed engine, the intermediate stays in cache */
  LATH_CONV_LINEAR,    /* 1 x 1 on images whose channels are adjacent: the low-rank linear layer over all pixels */
  LATH_CONV_PAIR,      /* two library convolutions would be faster */
  LATH_CONV_MERGED     /* the dense library convolution with the weight u v would be faster */
} lath_conv_kernel;

struct lath_conv_plan {
  lath_conv_kernel kernel;
  int64_t macs;          /* multiply-adds of the call under this plan (forward, or backward with every gradient) */
  int64_t dense_macs;    /* of the dense convolution */
  int save_intermediate; /* 1: for training, keeping p costs less time than computing it again */
};

/* LATH_INVALID_ARGUMENT where an extent is impossible: a stride or dilation below 1, a negative padding, channels that groups do
 * not divide, a window that does not fit the padded image. */
LATH_API lath_status lath_lowrank_conv2d_sizes(const struct lath_lowrank_conv2d *args, struct lath_conv_sizes *sizes);

/* Pure arithmetic on the extents, on x.s_c, which tells the layout of the images, and on what the processor can do with bf16. */
LATH_API lath_status lath_lowrank_conv2d_plan(const struct lath_lowrank_conv2d *args, int backward,
                                              struct lath_conv_plan *plan);

/* The entries carry out every shape themselves, also where the plan would leave it to a library. */
LATH_API lath_status lath_lowrank_conv2d_workspace(const struct lath_lowrank_conv2d *args, const struct lath_host *host,
                                                   size_t *bytes);
LATH_API lath_status lath_lowrank_conv2d(const struct lath_lowrank_conv2d *args, const struct lath_host *host);
LATH_API lath_status lath_lowrank_conv2d_ref(const struct lath_lowrank_conv2d *args);

LATH_API lath_status lath_lowrank_conv2d_backward_workspace(const struct lath_lowrank_conv2d *args,
                                                            const struct lath_host *host, size_t *bytes);
LATH_API lath_status lath_lowrank_conv2d_backward(const struct lath_lowrank_conv2d *args, const struct lath_host *host);
LATH_API lath_status lath_lowrank_conv2d_backward_ref(const struct lath_lowrank_conv2d *args);

/* ---- low-rank LSTM ----------------------------------------------------------------------------------------------------------------------- */

/* One layer in one direction, gates in the order i, f, g, o of torch.nn.LSTM:
 *
 *   a_t = u_in (v_in x_t) + bias_in + u (v h_before) + bias      i, f, o = sigmoid(a), g = tanh(a)
 *   c_t = f c_before + i g                                       h_t = o tanh(c_t)
 *
 * A sequence of steps over a batch; with `batch_sizes`, packed as torch.nn.utils.rnn.PackedSequence: step t has batch_sizes[t] rows, no more
 * than the step before it, and `batch` in the first. A *row* is one sample at one step: row (t, b) is number t batch + b, or, packed,
 * batch_sizes[0] + ... + batch_sizes[t - 1] + b. */
struct lath_lowrank_lstm {
  lath_dtype dtype;             /* of every operand: F32, or F64 in plain loops */
  lath_association association; /* of both pairs of factors; LATH_AUTO decides for each of them */
  int64_t steps, batch, in, hidden;
  int64_t in_rank, rank;      /* in_rank 0: the input weight is dense */
  const int64_t *batch_sizes; /* (steps), in host memory; or NULL */
  int reverse;                /* from the last step of each sample to the first */

  const void *x; /* row (t, b) at t s_x_step + b s_x_row; packed: row number times s_x_row. As for y, dy and dx */
  int64_t s_x_step, s_x_row;
  const void *v_in;           /* (in_rank, in), contiguous as all weights; NULL if in_rank is 0 */
  const void *u_in;           /* (4 hidden, in_rank), or (4 hidden, in) */
  const void *v, *u;          /* (rank, hidden), (4 hidden, rank) */
  const void *bias_in, *bias; /* (4 hidden), or NULL */
  const void *h0, *c0;        /* (batch, hidden), or NULL: zeros */

  void *y; /* h of every row, (rows, hidden). The backward reads it */
  int64_t s_y_step, s_y_row;
  void *hn, *cn; /* (batch, hidden): after the last step of each sample; forward only */
  void *c; /* (rows, hidden) contiguous: c of every row, all that the backward needs beside y. Forward: written when not NULL */

  void *
      gates; /* i, f, g, o of every row, (rows, 4 hidden) contiguous. Forward: written when not NULL. Backward: read when not NULL, else formed
                  * again from h, which takes about a quarter of its time */

  const void *dy; /* (rows, hidden), or NULL: zeros. Backward only, as all that follow */
  int64_t s_dy_step, s_dy_row;
  const void *dhn, *dcn; /* (batch, hidden), or NULL: zeros */
  void *dx;              /* like x; NULL: skipped, like each gradient below */
  int64_t s_dx_step, s_dx_row;
  void *dv_in, *du_in, *dv, *du; /* like the weights */
  void *d_bias;                  /* (4 hidden): of either bias */
  void *dh0, *dc0;               /* (batch, hidden) */

  void *workspace;
  size_t workspace_bytes;
};

LATH_API lath_status lath_lowrank_lstm_workspace(const struct lath_lowrank_lstm *args, const struct lath_host *host,
                                                 size_t *bytes);
LATH_API lath_status lath_lowrank_lstm(const struct lath_lowrank_lstm *args, const struct lath_host *host);
LATH_API lath_status lath_lowrank_lstm_ref(const struct lath_lowrank_lstm *args);

LATH_API lath_status lath_lowrank_lstm_backward_workspace(const struct lath_lowrank_lstm *args, const struct lath_host *host,
                                                          size_t *bytes);
LATH_API lath_status lath_lowrank_lstm_backward(const struct lath_lowrank_lstm *args, const struct lath_host *host);
LATH_API lath_status lath_lowrank_lstm_backward_ref(const struct lath_lowrank_lstm *args);

/* ---- OIALR linear: y = x w^T + bias with w = u s vh ------------------------------------------------------------------------------ */

/* A weight in an orthogonal basis (OIALR, arXiv 2401.08505): the columns of u and the rows of vh are orthonormal and frozen, the
 * core s trains. Nothing here needs them to be orthonormal. The function and its gradients are the same on every route up to
 * rounding; per row of a training step
 *
 *   chained   t = x vh^T, z = t s^T, y = z u^T       h = dy u, dx = (h s) vh, ds = h^T t      2 rank (in + out) + 3 rank^2
 *   folded    u s and s vh are formed once per call: 2 rank (in + out) + rank^2, and rank^2 (in + out) per call
 *   merged    w is formed, ds = u^T (dy^T x) vh^T:   3 in out, and about 4 rank in out per call; keeps x instead of t */
typedef enum lath_oialr_route {
  LATH_OIALR_AUTO = 0, /* the planner takes the cheapest */
  LATH_OIALR_CHAINED,
  LATH_OIALR_FOLDED,
  LATH_OIALR_MERGED
} lath_oialr_route;

struct lath_oialr_linear {
  lath_dtype dtype; /* of every operand but t */
  lath_oialr_route route;
  int64_t rows, in, rank, out;

  const void *x; /* (rows, in); backward: read where t is NULL or the route is merged, and may be NULL elsewhere */
  int64_t s_x;
  const void *vh; /* (rank, in) */
  int64_t s_vh;
  const void *s; /* (rank, rank) */
  int64_t s_s;
  const void *u; /* (out, rank) */
  int64_t s_u;
  const void *bias; /* (out), or NULL */

  void *y; /* (rows, out); forward only */
  int64_t s_y;

  /* t = x vh^T, (rows, rank) contiguous, in the type that sums are kept in (see p of lath_lowrank_linear). Forward: written when
   * not NULL, on every route but merged. Backward: read when not NULL, else recomputed where it is needed. */
  void *t;

  const void *dy; /* (rows, out); backward only, as all that follow: NULL in the forward */
  int64_t s_dy;
  void *dx; /* (rows, in), or NULL: skipped, like each gradient below */
  int64_t s_dx;
  void *ds;     /* (rank, rank) contiguous */
  void *d_bias; /* (out) */

  void *workspace;
  size_t workspace_bytes;
};

struct lath_oialr_plan {
  lath_oialr_route route; /* never LATH_OIALR_AUTO */
  int64_t macs;       /* multiply-adds of the call under this plan: of the forward, or of a training step with every gradient */
  int64_t dense_macs; /* of the dense layer: rows in out, three times that for a training step */
  int save_t;         /* 1: a forward that is followed by a backward keeps t; 0: it keeps x */
};

/* Pure arithmetic on the shape; `training` is 0 for a forward alone, 1 for forward and backward together. F64 is chained unless
 * args->route says otherwise. */
LATH_API lath_status lath_oialr_linear_plan(const struct lath_oialr_linear *args, int training, struct lath_oialr_plan *plan);

/* With LATH_OIALR_AUTO the forward takes the plan of a training step where t is written, of a forward alone otherwise; the backward
 * one of those that use t where it is given. The queries look at dtype, extents and route, and at which pointers are NULL. */
LATH_API lath_status lath_oialr_linear_workspace(const struct lath_oialr_linear *args, const struct lath_host *host,
                                                 size_t *bytes);
LATH_API lath_status lath_oialr_linear(const struct lath_oialr_linear *args, const struct lath_host *host);
LATH_API lath_status lath_oialr_linear_ref(const struct lath_oialr_linear *args);

LATH_API lath_status lath_oialr_linear_backward_workspace(const struct lath_oialr_linear *args, const struct lath_host *host,
                                                          size_t *bytes);
LATH_API lath_status lath_oialr_linear_backward(const struct lath_oialr_linear *args, const struct lath_host *host);
LATH_API lath_status lath_oialr_linear_backward_ref(const struct lath_oialr_linear *args);

/* ---- Frobenius decay: value = || u v ||_F^2 = < u^T u, v v^T > ------------------------------------------------------------------ */

/* In Gram form: rank^2 (in + out) multiply-adds for the value and as many for the gradients; the (out, in) product is never
 * formed. d value / du = 2 u (v v^T), d value / dv = 2 (u^T u) v. */
struct lath_frobenius {
  lath_dtype dtype; /* of v, u, dv, du */
  int64_t in, rank, out;
  const void *v; /* (rank, in) */
  int64_t s_v;
  const void *u; /* (out, rank) */
  int64_t s_u;
  /* Gram matrices, (rank, rank) contiguous, in the type that sums are kept in (see p above). Written by lath_frobenius, read
   * by lath_frobenius_backward. */
  void *gram_v; /* v v^T */
  void *gram_u; /* u^T u */
  double *value;
  double scale; /* backward: the factor of both gradients, the incoming gradient of the value */
  void *dv;     /* (rank, in) contiguous, or NULL */
  void *du;     /* (out, rank) contiguous, or NULL */
  void *workspace;
  size_t workspace_bytes;
};

/* One query serves both entries. */
LATH_API lath_status lath_frobenius_workspace(const struct lath_frobenius *args, const struct lath_host *host, size_t *bytes);
LATH_API lath_status lath_frobenius(const struct lath_frobenius *args, const struct lath_host *host);
LATH_API lath_status lath_frobenius_ref(const struct lath_frobenius *args);
LATH_API lath_status lath_frobenius_backward(const struct lath_frobenius *args, const struct lath_host *host);
LATH_API lath_status lath_frobenius_backward_ref(const struct lath_frobenius *args);

#ifdef __cplusplus
}
#endif
#endif
