// The fast path of a call, from its arguments to the launch, without Python code: check the operands, look up the plan,
// launch the kernel.
//
// fast_path.py fills in Api and calls the functions exported below. Nothing is refused here: for a call that is not
// plain, or has no plan yet, the result is False, and Python then checks, converts or refuses it. Functions of CPython
// and torch are used by address, so neither's headers are needed: this file compiles in a second. They are stable ones,
// but for four of torch that save a microsecond, and whose work Python's do where torch does not have them.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <unordered_map>

#include "args.cuh"
#include "layout.cuh"

namespace {

struct Object;       // PyObject
struct Tensor;       // at::TensorImpl; torch's functions take the address of a pointer to one, which is an at::Tensor
using Status = int;  // 0: no error
using Launcher = const char* (*)(const GroupedArgs*);

// fast_path.Api has the same fields.
struct Api {
    // CPython's stable ABI; functions that return objects return a new reference unless marked "borrowed"
    Object* (*get_attr)(Object*, Object*);
    Object* (*type_of)(Object*);
    intptr_t (*tuple_size)(Object*);
    Object* (*tuple_item)(Object*, intptr_t);  // borrowed
    void* (*as_pointer)(Object*);
    int64_t (*as_int64)(Object*);
    uint64_t (*as_uint64)(Object*);
    Object* (*bytes)(const char*);
    Object* (*occurred)();  // borrowed
    void (*clear)();
    Object* (*call)(Object*, Object*);  // its arguments are a tuple, or nullptr
    Object* (*pack)(intptr_t, ...);     // a tuple of so many objects
    void (*inc_ref)(Object*);
    void (*dec_ref)(Object*);
    void* (*save_thread)();
    void (*restore_thread)(void*);
    // torch/csrc/inductor/aoti_torch/c/shim.h
    Status (*data)(Tensor* const*, const char**);
    Status (*sizes)(Tensor* const*, const int64_t**);
    Status (*strides)(Tensor* const*, const int64_t**);
    Status (*dimensions)(Tensor* const*, int64_t*);
    Status (*dtype)(Tensor* const*, int32_t*);
    Status (*device_type)(Tensor* const*, int32_t*);
    Status (*device_index)(Tensor* const*, int32_t*);
    Status (*storage_size)(Tensor* const*, int64_t*);    // in bytes
    Status (*storage_offset)(Tensor* const*, int64_t*);  // in elements
    bool (*gradients)();                                 // whether operations are recorded for autograd
    Status (*stream)(int32_t, void**);
    Status (*current_device)(int32_t*);  // cudaGetDevice
    // Of torch's C++ interface, or nullptr: TensorImpl::requires_grad, profilerEnabled, bump_version, which throws, and
    // tls_is_dispatch_key_included: whether all operations of this thread have a dispatch key, whatever their tensors
    bool (*needs_gradient)(const Tensor*);
    bool (*profiler_runs)();
    void (*bump_version)(Tensor* const*);
    bool (*key_included)(uint16_t);
    // Objects that live as long as the process
    Object *none, *no, *yes;
    Object *tuple, *tensor, *parameter;  // exact types: a subclass of Tensor may behave differently
    // Attribute names: of tensors; of a set of dispatch keys, its bits; of `forward_ad`, how many levels of
    // forward-mode derivatives there are, minus one
    Object *cdata, *requires_grad, *key_bits, *level;
    // Functions of torch: the innermost transform of torch.func or None; how many modes see every operation; what
    // torch.jit.trace has recorded or None; whether a profiler runs; one that counts a write of each tensor of a tuple,
    // which autograd asks for; and a tensor's dispatch keys
    Object *transform, *modes, *traced, *profiled, *increment_version, *dispatch_keys;
    Object* forward_ad;  // the module torch.autograd.forward_ad
    // torch's numbers for its dtypes and for the device type
    int64_t e4m3, fp32, int32, bf16, cuda;
    // torch's numbers of dispatch keys: of a mode, of a transform of torch.func, and of torch.jit.trace
    int64_t mode_key, transform_key, trace_key;
    // The bits of the dispatch keys that plain tensors may have. Any other says that the elements are not those in
    // memory (a lazy negation), are not there (a ZeroTensor), or are somebody else's affair (functionalization).
    int64_t plain_keys;
    // Where a tensor's object has the attribute `cdata`, and where a Tensor has its dispatch keys, in bytes; 0: not
    // known, Python is asked.
    int64_t cdata_at, keys_at;
};
Api api;

enum Kind : int64_t { kDense, kContiguous, kMasked, kPsum };

struct Key {
    int64_t kind, device_type, device, n, k, groups, expected_m, num_sms, alignment;
    bool operator==(const Key&) const = default;
};
struct Hash {
    std::size_t operator()(const Key& key) const {
        uint64_t hash = 0;
        for (const int64_t field : {key.kind, key.device_type, key.device, key.n, key.k, key.groups, key.expected_m,
                                    key.num_sms, key.alignment})
            hash = (hash ^ static_cast<uint64_t>(field)) * 0x9E3779B97F4A7C15, hash ^= hash >> 32;
        return hash;
    }
};
struct Plan {
    int64_t first;  // the least m that it holds for
    Launcher launcher;
    int64_t num_sms;
};
using PlansByLastM = std::map<int64_t, Plan>;       // by the largest m that each holds for
std::unordered_map<Key, PlansByLastM, Hash> plans;  // accessed only with the GIL held
int64_t num_sms_set, alignment_set;                 // as settings.py has them

bool has_type(Object* object, Object* type) {
    Object* const its = api.type_of(object);
    api.dec_ref(its);  // the object still holds a reference
    return its == type;
}

// The tensor of an object of torch's own classes; nullptr if an exception is set.
Tensor* tensor_of(Object* object) {
    Tensor* tensor = nullptr;
    if (api.cdata_at) {
        std::memcpy(&tensor, reinterpret_cast<const char*>(object) + api.cdata_at, sizeof tensor);
    } else if (Object* const address = api.get_attr(object, api.cdata)) {
        tensor = static_cast<Tensor*>(api.as_pointer(address));
        api.dec_ref(address);
    }
    return tensor;
}

// Whether a tensor's elements are those at its address.
bool is_plain(Object* object, const Tensor* tensor) {
    uint64_t keys = ~uint64_t{0};
    if (api.keys_at) {
        std::memcpy(&keys, reinterpret_cast<const char*>(tensor) + api.keys_at, sizeof keys);
    } else {
        Object* const arguments = api.pack(1, object);
        Object* const set = arguments ? api.call(api.dispatch_keys, arguments) : nullptr;
        Object* const get_bits = set ? api.get_attr(set, api.key_bits) : nullptr;
        Object* const bits = get_bits ? api.call(get_bits, nullptr) : nullptr;
        if (bits) keys = api.as_uint64(bits);
        for (Object* const one : {arguments, set, get_bits, bits})
            if (one) api.dec_ref(one);
    }
    return !(keys & ~static_cast<uint64_t>(api.plain_keys));
}

bool requires_grad(Object* object) {
    if (api.needs_gradient) return api.needs_gradient(tensor_of(object));
    Object* const value = api.get_attr(object, api.requires_grad);
    if (value) api.dec_ref(value);  // if it is False, somebody else holds a reference
    return value != api.no;
}

// Whether a function returns `expected`.
bool returns(Object* function, Object* expected) {
    Object* const found = api.call(function, nullptr);
    if (found) api.dec_ref(found);  // if it is `expected`, somebody else holds a reference
    return found == expected;
}

bool profiler_runs() { return api.profiler_runs ? api.profiler_runs() : !returns(api.profiled, api.no); }

// Whether an integer, to which this takes over the reference, is this one.
bool is_number(Object* number, int64_t expected) {
    const bool same = number && api.as_int64(number) == expected;
    if (number) api.dec_ref(number);
    return same;
}

// Whether nobody wants to see the call before it runs. A mode, a trace or a profiler sees what goes through torch's
// dispatcher, which Python then calls. In a transform of torch.func tensors of torch's own class may stand for others.
// Where forward-mode derivatives are computed, a tensor may have one, which the kernel would leave out.
bool unseen() {
    if (profiler_runs()) return false;
    if (api.key_included) {
        for (const int64_t key : {api.mode_key, api.transform_key, api.trace_key})
            if (api.key_included(key)) return false;
    } else if (!returns(api.transform, api.none) || !returns(api.traced, api.none) ||
               !is_number(api.call(api.modes, nullptr), 0)) {
        return false;
    }
    return is_number(api.get_attr(api.forward_ad, api.level), -1);
}

// Counts a write of a tensor; false if torch does not allow one.
bool increment_version(Object* tensor) {
    if (api.bump_version) {
        try {
            Tensor* const its = tensor_of(tensor);
            api.bump_version(&its);
            return true;
        } catch (...) {
            return false;
        }
    }
    Object* const tensors = api.pack(1, tensor);  // the function's only argument
    Object* const arguments = tensors ? api.pack(1, tensors) : nullptr;
    Object* const done = arguments ? api.call(api.increment_version, arguments) : nullptr;
    for (Object* const one : {tensors, arguments, done})
        if (one) api.dec_ref(one);
    return done;
}

struct View {
    const char* data;
    const int64_t *size, *stride;
    int64_t dimensions, storage, offset;
    int32_t dtype, device_type, device;

    // Reads `object`'s fields; false if it is not a tensor that can be read, and then an exception may be set.
    bool see(Object* object) {
        if (!has_type(object, api.tensor) && !has_type(object, api.parameter)) return false;
        Tensor* const tensor = tensor_of(object);
        return tensor && is_plain(object, tensor) && !api.data(&tensor, &data) && !api.sizes(&tensor, &size) &&
               !api.strides(&tensor, &stride) && !api.dimensions(&tensor, &dimensions) && !api.dtype(&tensor, &dtype) &&
               !api.device_type(&tensor, &device_type) && !api.device_index(&tensor, &device) &&
               !api.storage_size(&tensor, &storage) && !api.storage_offset(&tensor, &offset);
    }
    // Whether all of its elements, of so many bytes each, are in its storage, which may have been made smaller.
    bool is_stored(int64_t element) const { return (offset + span()) * element <= storage; }
    // The elements from its first to its last, with those between its rows.
    int64_t span() const {
        int64_t last = 0;
        for (int i = 0; i < dimensions; ++i) last += (size[i] - 1) * stride[i];
        return last + 1;
    }
    // Whether it has this type and these sizes and strides, whose first element, the groups', counts only if `many`.
    // The stride of a dimension of size 1 does not matter.
    bool is(int64_t type, bool many, const int64_t (&sizes)[3], const int64_t (&strides)[3]) const {
        bool same = has_sizes(type, many, sizes);
        for (int i = 0; same && i < dimensions; ++i) same = size[i] == 1 || stride[i] == strides[i + !many];
        return same;
    }
    bool has_sizes(int64_t type, bool many, const int64_t (&sizes)[3]) const {
        bool same = dtype == type && dimensions == 2 + many;
        for (int i = 0; same && i < dimensions; ++i) same = size[i] == sizes[i + !many];
        return same;
    }
    // The elements from row to row of matrices, as arguments.row_stride finds them.
    int64_t row_stride() const {
        for (int i = dimensions - 2; i >= 0; --i)
            if (size[i] > 1) return stride[i];
        return size[dimensions - 1];
    }
    // Whether it has this type and these sizes, and rows that TMA can load: without gaps, not overlapping, and a
    // multiple of 16 bytes apart. `element`: bytes.
    bool has_rows(int64_t type, bool many, int64_t groups, int64_t rows, int64_t length, int64_t element) const {
        const int64_t pitch = row_stride();
        return pitch >= length && pitch * element % 16 == 0 &&
               is(type, many, {groups, rows, length}, {rows * pitch, pitch, 1});
    }
};
struct Pair {
    Object* pair;
    View &of, &scales;
};

enum class Found { kNothing, kScalesToConvert, kPlan };

// Finds a plain call's arguments and its plan. kNothing: the call is not plain or has no plan; kScalesToConvert: it is
// and has, but for the strides of A's scales, and nothing was found but `d`.
Found find(Kind kind, Object* lhs, Object* rhs, Object* out, Object* layout, int64_t expected_m, GroupedArgs& args,
           Plan& plan, View& d) {
    View a, sfa, b, sfb, rows;
    const bool gradients = api.gradients();
    for (const auto& [pair, of, scales] : {Pair{lhs, a, sfa}, Pair{rhs, b, sfb}}) {
        if (!has_type(pair, api.tuple) || api.tuple_size(pair) != 2) return Found::kNothing;
        if (!of.see(api.tuple_item(pair, 0)) || !scales.see(api.tuple_item(pair, 1))) return Found::kNothing;
        for (int i = 0; gradients && i < 2; ++i)
            if (requires_grad(api.tuple_item(pair, i))) return Found::kNothing;
    }
    if (!d.see(out) || (kind != kDense && !rows.see(layout))) return Found::kNothing;
    const bool many_a = kind == kMasked, many_b = kind != kDense;
    if (a.dimensions != 2 + many_a || b.dimensions != 2 + many_b) return Found::kNothing;
    const int64_t m = a.size[many_a], k = a.size[many_a + 1], n = b.size[many_b], groups = many_b ? b.size[0] : 1;
    const int64_t groups_a = many_a ? groups : 1, counted = kind == kContiguous ? m : groups;
    const int64_t blocks_k = ceil_div(k, kScaleK), blocks_n = ceil_div(n, kScaleN), pitch = ceil_div(m, 4) * 4;
    const int64_t rows_a = groups_a * m, rows_b = groups * n;
    if (!m || !n || !k || !a.has_rows(api.e4m3, many_a, groups, m, k, 1) ||
        !b.has_rows(api.e4m3, many_b, groups, n, k, 1) || d.dimensions != a.dimensions ||
        !d.has_rows(api.bf16, many_a, groups, m, n, sizeof(uint16_t)))
        return Found::kNothing;
    const int64_t pitch_a = a.row_stride(), pitch_b = b.row_stride(), pitch_d = d.row_stride();
    const char *begin = d.data, *end = begin + ((rows_a - 1) * pitch_d + n) * sizeof(uint16_t);
    const auto beside = [&](const View& view, int64_t bytes, int alignment) {
        return view.device_type == d.device_type && view.device == d.device && view.data &&
               reinterpret_cast<uintptr_t>(view.data) % alignment == 0 &&
               (view.data >= end || view.data + bytes <= begin);
    };
    const bool converted = sfa.is(api.fp32, many_a, {groups, m, blocks_k}, {pitch * blocks_k, 1, pitch});
    if (!(converted || sfa.has_sizes(api.fp32, many_a, {groups, m, blocks_k})) ||
        !sfb.is(api.fp32, many_b, {groups, blocks_n, blocks_k}, {blocks_n * blocks_k, blocks_k, 1}) || !begin ||
        reinterpret_cast<uintptr_t>(begin) % 16)
        return Found::kNothing;
    if (!beside(a, (rows_a - 1) * pitch_a + k, 16) ||
        !beside(sfa, converted ? groups_a * pitch * blocks_k * sizeof(float) : sfa.span() * sizeof(float),
                converted ? 16 : alignof(float)) ||
        !beside(b, (rows_b - 1) * pitch_b + k, 16) || !beside(sfb, groups * blocks_n * blocks_k * sizeof(float), 16))
        return Found::kNothing;
    if (many_b && (rows.dtype != api.int32 || rows.dimensions != 1 || rows.size[0] != counted ||
                   (counted > 1 && rows.stride[0] != 1) || !beside(rows, counted * sizeof(int32_t), 4)))
        return Found::kNothing;
    if (!a.is_stored(1) || !sfa.is_stored(sizeof(float)) || !b.is_stored(1) || !sfb.is_stored(sizeof(float)) ||
        !d.is_stored(sizeof(uint16_t)) || (many_b && !rows.is_stored(sizeof(int32_t))))
        return Found::kNothing;
    if (requires_grad(out)) return Found::kNothing;
    const auto weight =
        plans.find({kind, d.device_type, d.device, n, k, groups, expected_m, num_sms_set, alignment_set});
    if (weight == plans.end()) return Found::kNothing;
    const auto found = weight->second.lower_bound(m);
    if (found == weight->second.end() || m < found->second.first) return Found::kNothing;
    if (!converted) return Found::kScalesToConvert;
    plan = found->second;
    args = {{reinterpret_cast<const uint8_t*>(a.data), reinterpret_cast<const float*>(sfa.data),
             reinterpret_cast<const uint8_t*>(b.data), reinterpret_cast<const float*>(sfb.data),
             reinterpret_cast<uint16_t*>(const_cast<char*>(d.data)), m, n, k, pitch, plan.num_sms, nullptr},
            pitch_a,
            pitch_b,
            pitch_d,
            many_b ? reinterpret_cast<const int32_t*>(rows.data) : nullptr,
            groups,
            groups_a};
    return Found::kPlan;
}

// Returns None if the call was queued, False if it was not, True if it would be with A's scales converted, or bytes
// with the error text of a failed launch.
Object* queue(Kind kind, Object* lhs, Object* rhs, Object* out, Object* layout, int64_t expected_m) {
    GroupedArgs args;
    Plan plan;
    View d;
    int32_t current;
    Object* result = api.no;
    const Found found = unseen() ? find(kind, lhs, rhs, out, layout, expected_m, args, plan, d) : Found::kNothing;
    if (found == Found::kScalesToConvert) {
        result = api.yes;
    } else if (found == Found::kPlan &&
               (d.device_type != api.cuda ||
                (!api.current_device(&current) && current == d.device && !api.stream(current, &args.stream))) &&
               increment_version(out)) {
        void* const thread = api.save_thread();  // a launch waits while the stream's queue is full
        const char* const error = plan.launcher(&args);
        api.restore_thread(thread);
        if (error) return api.bytes(error);
        result = api.none;
    } else if (api.occurred()) {
        api.clear();
    }
    api.inc_ref(result);
    return result;
}

// The functions that Python calls: dense (lhs, rhs, out), contiguous (lhs, rhs, out, m_indices), masked (lhs, rhs, out,
// masked_m, expected_m), psum (lhs, rhs, out, grouped_layout, expected_m).
template <Kind kKind>
Object* method(Object*, Object* const* given, intptr_t) {
    return queue(kKind, given[0], given[1], given[2], kKind == kDense ? nullptr : given[3],
                 kKind >= kMasked ? api.as_int64(given[4]) : 0);
}

struct Method {  // PyMethodDef
    const char* name;
    Object* (*function)(Object*, Object* const*, intptr_t);
    int flags;
    const char* doc;
};
constexpr int kFastCall = 0x80;  // METH_FASTCALL
Method methods[] = {{"dense", method<kDense>, kFastCall, nullptr},
                    {"contiguous", method<kContiguous>, kFastCall, nullptr},
                    {"masked", method<kMasked>, kFastCall, nullptr},
                    {"psum", method<kPsum>, kFastCall, nullptr}};

}  // namespace

// These are called with the GIL held.
extern "C" void gemm_ladder_queue_fill(const Api* given) { api = *given; }
extern "C" Method* gemm_ladder_queue_function(int64_t kind) { return &methods[kind]; }
extern "C" void gemm_ladder_queue_plan(const Key* key, int64_t first, int64_t last, Launcher launcher,
                                       int64_t num_sms) {
    plans[*key][last] = {first, launcher, num_sms};
}
extern "C" void gemm_ladder_queue_settings(int64_t num_sms, int64_t alignment) {
    num_sms_set = num_sms, alignment_set = alignment;
}
extern "C" void gemm_ladder_queue_forget() { plans.clear(); }
