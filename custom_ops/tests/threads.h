// A host's threads for the tests and the benchmark: a pool that hands out indices, as an asvp_parallel_for.
#ifndef ASVP_TESTS_THREADS_H_
#define ASVP_TESTS_THREADS_H_

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "asvp.h"

class Threads {
 public:
  explicit Threads(int count) {
    for (int i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
  }
  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      ++round_;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  // An asvp_parallel_for; `host` is the pool. One call at a time.
  static void run(void* host, asvp_task task, size_t count, void* argument) {
    static_cast<Threads*>(host)->all(task, count, argument);
  }

 private:
  void all(asvp_task task, size_t count, void* argument) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      argument_ = argument;
      count_ = count;
      next_.store(0);
      open_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    drain();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;  // a worker that has not come yet is not waited for
    }
    while (busy_.load() > 0) pause();
  }

  void drain() {
    for (size_t i; (i = next_.fetch_add(1)) < count_;) task_(argument_, i);
  }

  void work() {
    for (int seen = 0;;) {
      // As pools of compute libraries do: look for the next call a little while before going to sleep.
      for (int spin = 0; spin < 2000 && round_.load() == seen; ++spin) pause();
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load() != seen; });
        seen = round_.load();
        if (stop_) return;
        if (!open_) continue;
        busy_.fetch_add(1);
      }
      drain();
      busy_.fetch_sub(1);
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<int> round_{0}, busy_{0};
  std::atomic<size_t> next_{0};
  bool stop_ = false, open_ = false;
  asvp_task task_ = nullptr;
  void* argument_ = nullptr;
  size_t count_ = 0;
};

#endif  // ASVP_TESTS_THREADS_H_
