from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    FLOAT32: _ClassVar[DType]
    FLOAT16: _ClassVar[DType]
    BFLOAT16: _ClassVar[DType]
    INT8: _ClassVar[DType]
    UINT8: _ClassVar[DType]
    INT32: _ClassVar[DType]
    INT64: _ClassVar[DType]

class Compression(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONE: _ClassVar[Compression]
    ZSTD: _ClassVar[Compression]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INFER: _ClassVar[Mode]
    TRAIN: _ClassVar[Mode]
DTYPE_UNSPECIFIED: DType
FLOAT32: DType
FLOAT16: DType
BFLOAT16: DType
INT8: DType
UINT8: DType
INT32: DType
INT64: DType
NONE: Compression
ZSTD: Compression
INFER: Mode
TRAIN: Mode

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "compression", "data", "scale", "offset")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    compression: Compression
    data: bytes
    scale: _containers.RepeatedScalarFieldContainer[float]
    offset: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., compression: _Optional[_Union[Compression, str]] = ..., data: _Optional[bytes] = ..., scale: _Optional[_Iterable[float]] = ..., offset: _Optional[_Iterable[float]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("protocol_major", "protocol_minor", "library_version", "edge_id", "mode", "model_name", "weights_sha256", "policy_sha256", "manifest_sha256", "first_stage", "features", "epoch", "recipe_sha256", "average_sha256")
    PROTOCOL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_VERSION_FIELD_NUMBER: _ClassVar[int]
    EDGE_ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    POLICY_SHA256_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    FIRST_STAGE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECIPE_SHA256_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    protocol_major: int
    protocol_minor: int
    library_version: str
    edge_id: str
    mode: Mode
    model_name: str
    weights_sha256: str
    policy_sha256: str
    manifest_sha256: str
    first_stage: int
    features: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    epoch: int
    recipe_sha256: str
    average_sha256: str
    def __init__(self, protocol_major: _Optional[int] = ..., protocol_minor: _Optional[int] = ..., library_version: _Optional[str] = ..., edge_id: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., model_name: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., policy_sha256: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., first_stage: _Optional[int] = ..., features: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., epoch: _Optional[int] = ..., recipe_sha256: _Optional[str] = ..., average_sha256: _Optional[str] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("what", "edge", "cloud")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    CLOUD_FIELD_NUMBER: _ClassVar[int]
    what: str
    edge: str
    cloud: str
    def __init__(self, what: _Optional[str] = ..., edge: _Optional[str] = ..., cloud: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("accepted", "differences", "protocol_major", "protocol_minor", "library_version", "generation", "max_rows", "max_message_bytes", "expected_sequence", "clock", "average_wait_s")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    protocol_major: int
    protocol_minor: int
    library_version: str
    generation: str
    max_rows: int
    max_message_bytes: int
    expected_sequence: int
    clock: float
    average_wait_s: float
    def __init__(self, accepted: bool = ..., differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ..., protocol_major: _Optional[int] = ..., protocol_minor: _Optional[int] = ..., library_version: _Optional[str] = ..., generation: _Optional[str] = ..., max_rows: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., expected_sequence: _Optional[int] = ..., clock: _Optional[float] = ..., average_wait_s: _Optional[float] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("code", "sentence", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    sentence: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., sentence: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("request_id", "generation", "timeout_ms", "tensors")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    generation: str
    timeout_ms: int
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, request_id: _Optional[str] = ..., generation: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class InferReply(_message.Message):
    __slots__ = ("request_id", "status", "predictions", "exit_index", "score", "degraded", "queue_us", "compute_us")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    EXIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    status: Status
    predictions: Tensor
    exit_index: Tensor
    score: Tensor
    degraded: _containers.RepeatedScalarFieldContainer[int]
    queue_us: int
    compute_us: int
    def __init__(self, request_id: _Optional[str] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., predictions: _Optional[_Union[Tensor, _Mapping]] = ..., exit_index: _Optional[_Union[Tensor, _Mapping]] = ..., score: _Optional[_Union[Tensor, _Mapping]] = ..., degraded: _Optional[_Iterable[int]] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("generation", "epoch", "sequence", "tensors", "labels", "sample_weight", "crc32", "ends_pass", "pass_number")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    ENDS_PASS_FIELD_NUMBER: _ClassVar[int]
    PASS_NUMBER_FIELD_NUMBER: _ClassVar[int]
    generation: str
    epoch: int
    sequence: int
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    labels: Tensor
    sample_weight: Tensor
    crc32: int
    ends_pass: bool
    pass_number: int
    def __init__(self, generation: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., labels: _Optional[_Union[Tensor, _Mapping]] = ..., sample_weight: _Optional[_Union[Tensor, _Mapping]] = ..., crc32: _Optional[int] = ..., ends_pass: bool = ..., pass_number: _Optional[int] = ...) -> None: ...

class TrainReply(_message.Message):
    __slots__ = ("status", "committed", "expected_sequence", "loss", "accuracy", "queued", "idle_share")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    IDLE_SHARE_FIELD_NUMBER: _ClassVar[int]
    status: Status
    committed: int
    expected_sequence: int
    loss: float
    accuracy: float
    queued: int
    idle_share: float
    def __init__(self, status: _Optional[_Union[Status, _Mapping]] = ..., committed: _Optional[int] = ..., expected_sequence: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., queued: _Optional[int] = ..., idle_share: _Optional[float] = ...) -> None: ...

class AverageRequest(_message.Message):
    __slots__ = ("generation", "epoch", "number", "samples", "weights", "crc32")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    generation: str
    epoch: int
    number: int
    samples: int
    weights: Tensor
    crc32: int
    def __init__(self, generation: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., samples: _Optional[int] = ..., weights: _Optional[_Union[Tensor, _Mapping]] = ..., crc32: _Optional[int] = ...) -> None: ...

class AverageReply(_message.Message):
    __slots__ = ("round", "weights", "crc32", "edges", "samples")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    round: int
    weights: Tensor
    crc32: int
    edges: int
    samples: int
    def __init__(self, round: _Optional[int] = ..., weights: _Optional[_Union[Tensor, _Mapping]] = ..., crc32: _Optional[int] = ..., edges: _Optional[int] = ..., samples: _Optional[int] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("generation", "epoch")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    generation: str
    epoch: int
    def __init__(self, generation: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class PublishReply(_message.Message):
    __slots__ = ("weights_sha256", "steps")
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    weights_sha256: str
    steps: int
    def __init__(self, weights_sha256: _Optional[str] = ..., steps: _Optional[int] = ...) -> None: ...
