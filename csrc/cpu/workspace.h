// Memory that grows and is used again, by the batches of a call and by later calls: for small layers, fresh pages would
// cost more than the kernels.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

namespace fec::cpu {

class Workspace {
 public:
  // At least so many bytes, aligned to a vector; what was in them before may be lost.
  char* at_least(int64_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(rounded(bytes, 64)))));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = rounded(bytes, 64);
    }
    return memory_.get();
  }

  char* get() const { return memory_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char[], Free> memory_;
  int64_t size_ = 0;
};

// The workspaces of a call. The process keeps those of one call that has ended, at most kKept bytes; calls that run at
// the same time begin with none. There is no lock that a fork could leave closed.
class Workspaces {
 public:
  static constexpr int64_t kKept = 32 << 20;

  Workspaces() : held_(kept().exchange(nullptr)) {
    if (held_ == nullptr) held_ = std::make_unique<std::vector<Workspace>>();
  }

  ~Workspaces() {
    int64_t bytes = 0;
    for (const Workspace& each : *held_) bytes += each.size();
    while (bytes > kKept) {  // only the last ones, which are the smallest, may stay
      bytes -= held_->front().size();
      held_->erase(held_->begin());
    }
    const std::unique_ptr<std::vector<Workspace>> before(kept().exchange(held_.release()));
  }

  Workspaces(const Workspaces&) = delete;
  Workspaces& operator=(const Workspaces&) = delete;

  // The smallest workspace that has so many bytes, or else the largest, grown.
  Workspace take(int64_t bytes) {
    Workspace taken;
    if (!held_->empty()) {
      auto which = std::find_if(held_->rbegin(), held_->rend(), [&](const Workspace& w) { return w.size() >= bytes; });
      if (which == held_->rend()) --which;
      taken = std::move(*which);
      held_->erase(std::next(which).base());
    }
    taken.at_least(bytes);
    return taken;
  }

  void give_back(Workspace workspace) {
    if (workspace.size() == 0) return;
    const auto smaller = std::find_if(held_->begin(), held_->end(),
                                      [&](const Workspace& w) { return w.size() < workspace.size(); });
    held_->insert(smaller, std::move(workspace));
  }

 private:
  static std::atomic<std::vector<Workspace>*>& kept() {
    static std::atomic<std::vector<Workspace>*> kept{nullptr};
    return kept;
  }

  std::unique_ptr<std::vector<Workspace>> held_;  // largest first
};

}  // namespace fec::cpu
