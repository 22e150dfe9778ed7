/* SPDX-License-Identifier: Apache-2.0
 * linear.h - inside the library: what lath_linear and its twin share. */
#ifndef LATH_GEMM_LINEAR_H
#define LATH_GEMM_LINEAR_H

#include "lath.h"

lath_status lath_linear_check(const struct lath_linear *args);
lath_status lath_linear_check_operands(const struct lath_linear *args); /* the same for any element type */

#endif
