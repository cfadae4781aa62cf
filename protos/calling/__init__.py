"""The calling side of the wire, for whoever has the earlier stages."""

from protos.calling.answers import Answers as Answers
from protos.calling.breaker import CircuitBreaker as CircuitBreaker
from protos.calling.link import Link as Link
from protos.calling.link import LinkOptions as LinkOptions
from protos.calling.retry import RetryBudget as RetryBudget
