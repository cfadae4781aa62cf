"""The calling side of the wire, for whoever has the earlier stages."""

from protos.calling.answers import Answers as Answers
from protos.calling.breaker import CircuitBreaker as CircuitBreaker
from protos.calling.link import Link as Link
from protos.calling.retry import RetryBudget as RetryBudget
from protos.calling.settings import LinkOptions as LinkOptions
