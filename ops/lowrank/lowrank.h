/* SPDX-License-Identifier: Apache-2.0
 * lowrank.h - inside the library: what the files of the low-rank family share. */
#ifndef LATH_LOWRANK_LOWRANK_H
#define LATH_LOWRANK_LOWRANK_H

#include "lath.h"

lath_status lath_lowrank_check_forward(const struct lath_lowrank_linear *args);
lath_status lath_lowrank_check_backward(const struct lath_lowrank_linear *args);
lath_status lath_frobenius_check(const struct lath_frobenius *args, int backward);

/* Workspace of the `_ref` twins; every query answers at least this. */
size_t lath_lowrank_reference_bytes(const struct lath_lowrank_linear *args);

#endif
