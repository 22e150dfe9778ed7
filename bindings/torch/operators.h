/* SPDX-License-Identifier: Apache-2.0
 *
 * operators.h - the one list of operators of the namespace `lath`.
 *
 *   LATH_OPERATORS(X) expands to X(name, schema after the name, dispatch key, C entry) for each of them. It has four parts, by
 *   who computes on a GPU; LATH_CUDA_OPERATORS(X) are those of the GPU alone.
 *
 * The list feeds registration (operators_cpu.c, operators_cuda.c); the tests read it back through torch and run opcheck, the leak
 * test and the input zoo over every name, so no operator can be forgotten.
 *
 * Schemas: Tensor, int, float and bool only. An absent bias is a tensor without elements: `Tensor?` would cost a heap cell per
 * call and, before torch 2.13, an allocator mismatch in C. Outputs are always fresh tensors; a gradient that was not asked for is
 * a tensor of shape (0,).
 *
 *   association   0 planner's choice, 1 factored, 2 merged (enum lath_association)
 *   mask          gradients wanted, a sum of 1 dx, 2 dv, 4 du, 8 d_bias, 16 d_inner_bias; of the others of 1 for their first output,
 *                 2 for the second, and so on
 *   p             the intermediate (rows, rank), or of shape (0,) when it was not kept; in fp32 (double for double) on the CPU, in
 *                 the type of x on CUDA. The shape follows from the arguments alone, as tracing needs: `save` with association 0
 *                 means factored, and with association 2 there is no intermediate to keep. Of a convolution (batch, groups *
 *                 rank, height of x if separable and of y if pointwise, width of y)
 *   t             of a layer in an orthogonal basis, as p: x weight_vh^T (rows, rank), kept if `save` unless the route is merged. Where
 *                 it is given to the backward, x may be absent, a tensor without elements
 *   route         0 planner's choice, 1 chained, 2 folded, 3 merged (enum lath_oialr_route)
 *   x             of an LSTM (steps, batch, in), with batch_first (batch, steps, in), or packed (rows, in). A packed one needs
 *                 batch_sizes, int64 on the CPU, and h0, whose rows are the batch: no shape may follow from numbers in a tensor
 *   save          of an LSTM, what the backward will ask for: 0 nothing, 1 c of every row, 2 its activated gates too, which saves
 *                 the backward forming them again
 *   separable     the form of a low-rank convolution: true separable, false pointwise
 *   dtype         enum lath_dtype; kernel: enum lath_lowrank_kernel, for a convolution enum lath_conv_kernel
 */
#ifndef LATH_OPERATORS_H
#define LATH_OPERATORS_H

/* How the window of a convolution moves. Padding is given for each side, because "same" pads an even window by one more at the
 * end. */
#define LATH_CONV_GEOMETRY                                                                                                 \
  "int stride_h, int stride_w, int pad_top, int pad_bottom, int pad_left, int pad_right, int dilation_h, int dilation_w, " \
  "int groups, bool separable"

/* What both operators of an LSTM have after their first arguments. */
#define LATH_LSTM_WEIGHTS                                                                                               \
  "Tensor v_in, Tensor u_in, Tensor v, Tensor u, Tensor bias_in, Tensor bias, Tensor batch_sizes, bool reverse=False, " \
  "bool batch_first=False"

/* Compiled once, registered for the CPU by liblath_cpu.so and for CUDA by liblath_cuda.so. */
#define LATH_SHARED_OPERATORS(X)                                                                                               \
  X(linear, "(Tensor x, Tensor weight, Tensor bias) -> Tensor", "CPU", op_linear)                                              \
  X(lowrank_linear,                                                                                                            \
    "(Tensor x, Tensor weight_v, Tensor weight_u, Tensor bias, Tensor inner_bias, int association=0) -> Tensor", "CPU",        \
    op_lowrank_linear)                                                                                                         \
  X(lowrank_linear_forward,                                                                                                    \
    "(Tensor x, Tensor weight_v, Tensor weight_u, Tensor bias, Tensor inner_bias, bool save=True, int association=0)"          \
    " -> (Tensor y, Tensor p)",                                                                                                \
    "CPU", op_lowrank_linear_forward)                                                                                          \
  X(lowrank_linear_backward,                                                                                                   \
    "(Tensor dy, Tensor x, Tensor weight_v, Tensor weight_u, Tensor inner_bias, Tensor p, int mask=31, int association=0)"     \
    " -> (Tensor dx, Tensor dv, Tensor du, Tensor d_bias, Tensor d_inner_bias)",                                               \
    "CPU", op_lowrank_linear_backward)                                                                                         \
  X(oialr_linear, "(Tensor x, Tensor weight_vh, Tensor weight_s, Tensor weight_u, Tensor bias, int route=0) -> Tensor", "CPU", \
    op_oialr_linear)                                                                                                           \
  X(oialr_linear_forward,                                                                                                      \
    "(Tensor x, Tensor weight_vh, Tensor weight_s, Tensor weight_u, Tensor bias, bool save=True, int route=0)"                 \
    " -> (Tensor y, Tensor t)",                                                                                                \
    "CPU", op_oialr_linear_forward)                                                                                            \
  X(oialr_linear_backward,                                                                                                     \
    "(Tensor dy, Tensor x, Tensor weight_vh, Tensor weight_s, Tensor weight_u, Tensor t, int mask=7, int route=0)"             \
    " -> (Tensor dx, Tensor ds, Tensor d_bias)",                                                                               \
    "CPU", op_oialr_linear_backward)                                                                                           \
  X(frobenius_decay, "(Tensor weight_v, Tensor weight_u) -> (Tensor value, Tensor gram_v, Tensor gram_u)", "CPU",              \
    op_frobenius_decay)                                                                                                        \
  X(frobenius_decay_backward,                                                                                                  \
    "(Tensor grad, Tensor weight_v, Tensor weight_u, Tensor gram_v, Tensor gram_u) -> (Tensor dv, Tensor du)", "CPU",          \
    op_frobenius_decay_backward)

/* Kernels in C for the CPU only; on CUDA two convolutions of torch. */
#define LATH_CONV_OPERATORS(X)                                                                                               \
  X(lowrank_conv2d,                                                                                                          \
    "(Tensor x, Tensor weight_v, Tensor weight_u, Tensor bias, Tensor inner_bias, " LATH_CONV_GEOMETRY ") -> Tensor", "CPU", \
    op_lowrank_conv2d)                                                                                                       \
  X(lowrank_conv2d_forward,                                                                                                  \
    "(Tensor x, Tensor weight_v, Tensor weight_u, Tensor bias, Tensor inner_bias, " LATH_CONV_GEOMETRY                       \
    ", bool save=True) -> (Tensor y, Tensor p)",                                                                             \
    "CPU", op_lowrank_conv2d_forward)                                                                                        \
  X(lowrank_conv2d_backward,                                                                                                 \
    "(Tensor dy, Tensor x, Tensor weight_v, Tensor weight_u, Tensor inner_bias, Tensor p, " LATH_CONV_GEOMETRY               \
    ", int mask=31) -> (Tensor dx, Tensor dv, Tensor du, Tensor d_bias, Tensor d_inner_bias)",                               \
    "CPU", op_lowrank_conv2d_backward)

/* Registered for both as well, in float32 and float64; the Python package takes the LSTM of torch where that is better. One layer
 * in one direction, see struct lath_lowrank_lstm; the dense input weight is u_in without v_in. */
#define LATH_LSTM_OPERATORS(X)                                                                                                 \
  X(lowrank_lstm_forward,                                                                                                      \
    "(Tensor x, Tensor h0, Tensor c0, " LATH_LSTM_WEIGHTS                                                                      \
    ", int save=0, int association=0)"                                                                                         \
    " -> (Tensor y, Tensor hn, Tensor cn, Tensor c, Tensor gates)",                                                            \
    "CPU", op_lowrank_lstm_forward)                                                                                            \
  X(lowrank_lstm_backward,                                                                                                     \
    "(Tensor dy, Tensor dhn, Tensor dcn, Tensor x, Tensor h0, Tensor c0, Tensor y, Tensor c, Tensor gates, " LATH_LSTM_WEIGHTS \
    ", int mask=255, int association=0) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dv_in, Tensor du_in, Tensor dv"          \
    ", Tensor du, Tensor d_bias)",                                                                                             \
    "CPU", op_lowrank_lstm_backward)

/* No tensors. */
#define LATH_HOST_OPERATORS(X)                                                                                   \
  X(lowrank_linear_plan,                                                                                         \
    "(int rows, int in_features, int rank, int out_features, int association=0, bool backward=False)"            \
    " -> (int association, int kernel, int macs, int dense_macs, bool save_intermediate)",                       \
    "CompositeExplicitAutograd", op_lowrank_linear_plan)                                                         \
  X(lowrank_conv2d_plan,                                                                                         \
    "(int batch, int in_channels, int rank, int out_channels, int height, int width, int kernel_h, int kernel_w" \
    ", " LATH_CONV_GEOMETRY                                                                                      \
    ", bool channels_last=False, int dtype=0, bool backward=False)"                                              \
    " -> (int kernel, int macs, int dense_macs, bool save_intermediate)",                                        \
    "CompositeExplicitAutograd", op_lowrank_conv2d_plan)                                                         \
  X(oialr_linear_plan,                                                                                           \
    "(int rows, int in_features, int rank, int out_features, int route=0, bool training=False)"                  \
    " -> (int route, int macs, int dense_macs, bool save_t)",                                                    \
    "CompositeExplicitAutograd", op_oialr_linear_plan)                                                           \
  X(cpu_isa, "() -> int", "CompositeExplicitAutograd", op_cpu_isa)

#define LATH_OPERATORS(X) LATH_SHARED_OPERATORS(X) LATH_CONV_OPERATORS(X) LATH_LSTM_OPERATORS(X) LATH_HOST_OPERATORS(X)

/* Defined by liblath_cuda.so: there where it is loaded. */
#define LATH_CUDA_OPERATORS(X)                                                                                    \
  X(cuda_lowrank_linear_plan,                                                                                     \
    "(int rows, int in_features, int rank, int out_features, int association=0, bool backward=False, int dtype=0" \
    ", int device=0) -> (int association, int kernel, int macs, int dense_macs, bool save_intermediate)",         \
    "CompositeExplicitAutograd", op_cuda_lowrank_linear_plan)                                                     \
  X(cuda_oialr_linear_plan,                                                                                       \
    "(int rows, int in_features, int rank, int out_features, int route=0, bool training=False, int dtype=0"       \
    ", int device=0) -> (int route, int macs, int dense_macs, bool save_t)",                                      \
    "CompositeExplicitAutograd", op_cuda_oialr_linear_plan)

#endif
