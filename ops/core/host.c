/* SPDX-License-Identifier: Apache-2.0
 * host.c - the serial host, how many threads a call is worth, and how its rows are dealt out. */
#include "core/host.h"

#include "core/integers.h"

static int one_thread(void *ctx) {
  (void)ctx;
  return 1;
}

static int run_here(void *ctx, int64_t n, void (*body)(void *arg, int64_t begin, int64_t end), void *arg) {
  (void)ctx;
  if (n > 0) body(arg, 0, n);
  return 0;
}

const struct lath_host lath_serial_host = {NULL, one_thread, run_here};

/* About 5 microseconds of one AVX-512 core. */
#define MACS_PER_WORKER (INT64_C(1) << 19)

int lath_host_workers(const struct lath_host *host, int64_t macs) {
  const int64_t worth = macs / MACS_PER_WORKER;
  if (worth <= 1) return 1;
  const int threads = host->num_threads(host->ctx);
  if (threads <= 1) return 1;
  return worth < threads ? (int)worth : threads;
}

lath_status lath_host_run(const struct lath_host *host, int64_t tasks, void (*body)(void *arg, int64_t begin, int64_t end),
                          void *arg) {
  if (tasks == 1) {
    body(arg, 0, 1);
    return LATH_OK;
  }
  return host->parallel_for(host->ctx, tasks, body, arg) == 0 ? LATH_OK : LATH_HOST_FAILED;
}

void lath_host_tiles(int64_t all_rows, int64_t height, int64_t worker, int64_t workers,
                     void (*tile)(const void *arg, int64_t worker, int64_t row, int64_t rows), const void *arg) {
  const int64_t first = all_rows * worker / workers, rows = all_rows * (worker + 1) / workers - first;
  const int64_t tiles = lath_ceil_div(rows, height);
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t from = rows * t / tiles, to = rows * (t + 1) / tiles;
    tile(arg, worker, first + from, to - from);
  }
}
