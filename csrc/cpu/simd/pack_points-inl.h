// Points for `pairwise`, packed coordinate by coordinate: panels of Panel::width points side by side.
#pragma once

// One number per point: channels [point, point + count) of a filter, or filters of one channel.
template <class T>
static void points_on_line(const Job& job, int64_t group, int64_t point, int64_t count, T* to) {
  const Layer& layer = *job.layer;
  const bool inside = job.formula.axis == Axis::Channels;
  const auto offset_of = [&](int64_t p) {
    return inside ? filter_offset(layer, group) + p * layer.stride_channel : filter_offset(layer, p);
  };
  const T scale = T(job.scale), taps = T(layer.taps);
  const Compress compress = job.formula.compress;
  const bool squared = compress == Compress::Rms && layer.taps > 1;
  const bool absolute = compress == Compress::Rms || compress == Compress::AbsMean;
  Readers<T>::visit(layer.dtype, [&](auto reader) {
    using Read = decltype(reader);
    const auto* data = static_cast<const typename Read::Storage*>(layer.data);
    for (int64_t p = 0; p < count; ++p) {
      const auto* from = data + offset_of(point + p);
      T sum = 0;
      for (int64_t t = 0; t < layer.taps; ++t) {
        const T w = Read::get(from[t * layer.stride_tap]) * scale;
        sum += squared ? w * w : absolute && w < 0 ? -w : w;
      }
      to[p] = sum / taps;
    }
  });
  for (int64_t p = count; p < rounded(count, 2 * Of<T>::lanes); ++p) to[p] = 0;
  for (int64_t p = 0; squared && p < count; p += Of<T>::lanes) store(to + p, root<T>(load(to + p)));
}

// Coordinates [k, k + depth) of the points of `lanes`, as they are stored; inside a filter the points are channels.
template <class T, class Read>
static void pack_taps(const Job& job, const Lanes& lanes, int64_t k, int64_t depth, T* to) {
  constexpr int64_t width = 2 * Of<T>::lanes;
  const Layer& layer = *job.layer;
  const auto* data = static_cast<const typename Read::Storage*>(layer.data);
  const T scale = T(job.scale);
  int64_t run = layer.taps, step = layer.stride_tap;  // coordinates of constant stride
  if (job.formula.axis == Axis::Filters && (run == 1 || layer.stride_channel == run * step)) {
    if (run == 1) step = layer.stride_channel;
    run *= layer.channels;
  }
  for (int64_t done = 0; done < depth;) {
    const int64_t channel = (k + done) / run, t = (k + done) % run;
    const int64_t at = channel * layer.stride_channel + t * step;
    const int64_t n = run - t < depth - done ? run - t : depth - done;
    T* row = to + done * width;
    if (lanes.neighbours) {
      const auto* from = data + lanes.offset[0] + at;
      for (int64_t i = 0; i < n; ++i) store(row + i * width, Read::many(from + i * step) * scale);
    } else if (step == 1) {
      for (int64_t i = 0; i < n; i += Of<T>::lanes) {
        Vec<T> part[Of<T>::lanes];
        for (int64_t l = 0; l < Of<T>::lanes; ++l) {
          part[l] = read_some<T, Read>(data, lanes.offset[l] + at + i, n - i, lanes.end) * scale;
        }
        transpose<T>(part);
        for (int64_t j = 0; j < Of<T>::lanes && i + j < n; ++j) store(row + (i + j) * width, part[j]);
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t l = 0; l < Of<T>::lanes; ++l) {
          row[i * width + l] = Read::get(data[lanes.offset[l] + at + i * step]) * scale;
        }
      }
    }
    done += n;
  }
}

// Coordinates [k, k + depth) of `count` points from `point`, into panels.
template <class T>
static void pack(const Job& job, int64_t group, int64_t point, int64_t count, int64_t k, int64_t depth, T* to) {
  constexpr int64_t lanes = Of<T>::lanes, width = 2 * lanes;
  const Layer& layer = *job.layer;
  Layer points = layer;  // the points as filters, for lanes_of
  if (job.formula.axis == Axis::Channels) {
    points.outer = 1;
    points.inner = layer.channels;
    points.stride_inner = layer.stride_channel;
    points.channels = 1;
    points.data = static_cast<const char*>(layer.data) + filter_offset(layer, group) * size_of(layer.dtype);
  }
  Job shifted = job;
  shifted.layer = &points;
  for (int64_t p = 0; p < count; p += lanes) {
    const int64_t n = count - p < lanes ? count - p : lanes;
    T* panel = to + p / width * depth * width + p % width;
    Lanes here = lanes_of<T>(points, point + p, n);
    if (job.formula.compress == Compress::None) {
      Readers<T>::visit(layer.dtype,
                        [&](auto reader) { pack_taps<T, decltype(reader)>(shifted, here, k, depth, panel); });
    } else {
      for (int64_t l = 0; l < lanes; ++l) here.offset[l] += k * layer.stride_channel;
      columns_of<T>(shifted, here, depth, panel, width);
    }
    // Past the last point everything is 0, far from all points but zeros; a copy of a point would look like a near
    // pair.
    for (int64_t i = 0; n < lanes && i < depth; ++i) {
      for (int64_t l = n; l < lanes; ++l) panel[i * width + l] = 0;
    }
    for (int64_t i = 0; p % width == 0 && p + lanes >= count && i < depth; ++i) {
      store(panel + i * width + lanes, Vec<T>{});
    }
  }
}
