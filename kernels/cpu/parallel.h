#pragma once

#include <cstdint>

namespace vqp {

// Runs body(context, task, slot) for every task in [0, tasks) on at most `threads` threads; slot is
// below `threads` and belongs to one thread. Tasks are claimed in order, each by one thread.
void parallel_for(int threads, int64_t tasks, void (*body)(void *context, int64_t task, int slot), void *context);

template <class F>
void parallel_for(int threads, int64_t tasks, F &&body) {
    parallel_for(
        threads, tasks, [](void *c, int64_t task, int slot) { (*static_cast<F *>(c))(task, slot); }, &body);
}

}  // namespace vqp
