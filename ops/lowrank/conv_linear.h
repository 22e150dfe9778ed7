/* SPDX-License-Identifier: Apache-2.0
 * conv_linear.h - a 1 x 1 convolution on images whose channels are adjacent: every pixel is a row of a low-rank linear layer. */
#ifndef LATH_LOWRANK_CONV_LINEAR_H
#define LATH_LOWRANK_CONV_LINEAR_H

#include "lath.h"

/* Whether all images of the call are such rows. */
int lath_conv_is_linear(const struct lath_lowrank_conv2d *args, int backward);

/* The arguments have been checked. */
lath_status lath_conv_linear_workspace(const struct lath_lowrank_conv2d *args, int backward, const struct lath_host *host,
                                       size_t *bytes);
lath_status lath_conv_linear(const struct lath_lowrank_conv2d *args, const struct lath_host *host);
lath_status lath_conv_linear_backward(const struct lath_lowrank_conv2d *args, const struct lath_host *host);

#endif
