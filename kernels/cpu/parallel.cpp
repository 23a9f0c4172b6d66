// Threads: the OpenMP pool that torch already runs, found at run time.
//
// vLLM binds the threads of that pool to cores, and its idle threads spin for a while: a second
// pool, or a second OpenMP runtime, would compete with it for the same cores. So this library is not
// linked to any OpenMP; it asks the process for GOMP_parallel, which libgomp and the LLVM and Intel
// runtimes all export. Without one (a C program that has none) the caller does all the work.

#include "parallel.h"

#include <dlfcn.h>

#include <atomic>

namespace vqp {
namespace {

using GompParallel = void (*)(void (*)(void *), void *, unsigned, unsigned);

GompParallel find_pool() {
    void *symbol = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (!symbol) {
        if (void *handle = dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL)) symbol = dlsym(handle, "GOMP_parallel");
    }
    return reinterpret_cast<GompParallel>(symbol);
}

struct Job {
    void (*body)(void *, int64_t, int);
    void *context;
    int64_t tasks;
    std::atomic<int64_t> next{0};
    std::atomic<int> slots{0};
};

void work(void *argument) {
    Job &job = *static_cast<Job *>(argument);
    const int slot = job.slots.fetch_add(1, std::memory_order_relaxed);
    for (;;) {
        const int64_t task = job.next.fetch_add(1, std::memory_order_relaxed);
        if (task >= job.tasks) return;
        job.body(job.context, task, slot);
    }
}

}  // namespace

void parallel_for(int threads, int64_t tasks, void (*body)(void *, int64_t, int), void *context) {
    static const GompParallel pool = find_pool();
    Job job;
    job.body = body;
    job.context = context;
    job.tasks = tasks;
    const int wanted = threads < tasks ? threads : static_cast<int>(tasks);
    if (pool && wanted > 1) {
        pool(work, &job, static_cast<unsigned>(wanted), 0);
    } else {
        work(&job);
    }
}

}  // namespace vqp
