/* SPDX-License-Identifier: Apache-2.0
 * lstm_check.c - the demands on the arguments of a low-rank LSTM. */
#include "lowrank/lstm_check.h"

#include "lowrank/lstm.h" /* of the CPU */

lath_status lath_cuda_lstm_check(const struct lath_lowrank_lstm *a, int backward) {
  return backward ? lath_lstm_check_backward(a) : lath_lstm_check_forward(a);
}
