"""What edges have to agree with, to train here."""

from protos import training
from protos.identity import (
    Identity,
    difference,
    differences,
    mismatch,
    protocol_differences,
)


class Terms:
    """Compares what edges train with what is trained here.

    Args:
        agreement: What is trained, as `SegmentModel.agreement` says it.
        averaging: An `Averaging` of the edges' own segments, or `None`.
    """

    def __init__(self, agreement, averaging=None):
        self.agreement = agreement
        #: SHA-256 of all that has to be the same.
        self.recipe = training.digest(agreement)
        self.identity = training.identity_of(agreement)
        self._averaging = averaging

    def differences(self, hello):
        """What an edge has that does not fit.

        Args:
            hello: A `split_pb2.HelloRequest`.

        Returns:
            Differences, none of them if it may train.
        """
        versions = hello.protocol_major, hello.protocol_minor
        found = protocol_differences(versions)
        if not found:
            found = differences(Identity.of_hello(hello), self.identity)
        if not found and hello.recipe_sha256 != self.recipe:
            theirs = hello.recipe_sha256[:64]
            found = (difference("recipe", theirs, self.recipe),)
        theirs = hello.average_sha256[:64]
        if not found and theirs and self._averaging is not None:
            if theirs != self._averaging.form:
                ours = self._averaging.form
                found = (difference("averaged weights", theirs, ours),)
        return found

    def check(self, request):
        """Refuses a request of an edge that trains something else.

        Args:
            request: A message with a `generation`.

        Raises:
            VersionMismatch: If it is another one.
        """
        found = request.generation[:256], self.identity.generation
        if found[0] != found[1]:
            raise mismatch([difference("generation", *found)])
