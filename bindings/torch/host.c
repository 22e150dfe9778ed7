/* SPDX-License-Identifier: Apache-2.0
 * host.c - torch's intra-op thread pool as the host services of liblath.
 *
 * torch.set_num_threads() therefore holds, and no second OpenMP runtime enters the process. Bodies never raise: the shim would
 * turn an exception into a return code and lose its text. */
#include "host.h"

#include "shim.h"

struct job {
  void (*body)(void *arg, int64_t begin, int64_t end);
  void *arg;
};

static void run_range(int64_t begin, int64_t end, void *ctx) {
  const struct job *job = ctx;
  job->body(job->arg, begin, end);
}

static int num_threads(void *ctx) {
  (void)ctx;
  uint32_t n = 1;
  return torch_get_num_threads(&n) == 0 && n > 1 ? (int)n : 1;
}

static int parallel_for(void *ctx, int64_t n, void (*body)(void *arg, int64_t begin, int64_t end), void *arg) {
  (void)ctx;
  struct job job = {body, arg};
  return torch_parallel_for(0, n, 1, run_range, &job);
}

const struct lath_host torch_host = {.ctx = NULL, .num_threads = num_threads, .parallel_for = parallel_for};
