/* SPDX-License-Identifier: Apache-2.0
 * host.h - inside the library: how work is handed to the caller's threads. */
#ifndef LATH_CORE_HOST_H
#define LATH_CORE_HOST_H

#include "lath.h"

/* Threads worth waking for this many multiply-adds: a fork and a join cost about a microsecond, so each thread must get several
 * of them. Between 1 and host->num_threads. */
int lath_host_workers(const struct lath_host *host, int64_t macs);

/* Runs body(arg, task, task + 1 ...) over [0, tasks); one task runs on the caller's thread without a fork. */
lath_status lath_host_run(const struct lath_host *host, int64_t tasks, void (*body)(void *arg, int64_t begin, int64_t end),
                          void *arg);

/* Calls tile(arg, worker, row, rows) for the rows of a worker, a share of all, in equal tiles of at most `height` of them. */
void lath_host_tiles(int64_t all_rows, int64_t height, int64_t worker, int64_t workers,
                     void (*tile)(const void *arg, int64_t worker, int64_t row, int64_t rows), const void *arg);

/* The share of worker `w` of `n` items in whole units: [share(w), share(w + 1)). */
static inline int64_t lath_share(int64_t n, int64_t unit, int64_t w, int64_t workers) {
  const int64_t units = (n + unit - 1) / unit;
  const int64_t at = units * w / workers * unit;
  return at < n ? at : n;
}

#endif
