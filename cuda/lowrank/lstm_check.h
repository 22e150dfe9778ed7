/* SPDX-License-Identifier: Apache-2.0
 * lstm_check.h - inside the library: the demands on the arguments of a low-rank LSTM, which are those of the CPU's entries. */
#ifndef LATH_CUDA_LOWRANK_LSTM_CHECK_H
#define LATH_CUDA_LOWRANK_LSTM_CHECK_H

#include "lath.h"

lath_status lath_cuda_lstm_check(const struct lath_lowrank_lstm *args, int backward);

#endif
