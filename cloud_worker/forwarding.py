"""A further worker, asked for what does not leave here."""

import asyncio
import time

from protos.calling.link import Link
from protos.codecs import Codec
from protos.errors import CloudUnavailable, DeadlinePassed
from protos.security import ClientSecurity, read_tokens

# Of what is left of the deadline, for the way back.
_SHARE, _MAX_MARGIN_S = 0.1, 0.1
# Each is a thread that waits.
_MAX_IN_FLIGHT = 64
_GREETING_S = 1.0


class Forwarder:
    """Links to a further worker, one for each generation.

    Args:
        target: `"host:port"`.
        security: A `ClientSecurity`.
        codec: Form in which features cross.
        edge_id: What this worker calls itself there; empty where its
            certificate does.

    Raises:
        ValueError: If the target, its security or the codec cannot be right.
    """

    def __init__(self, target, security, codec="float32", edge_id=""):
        self._target, self._security = target, security
        self._codec = str(Codec.parse(codec))
        self._edge_id = edge_id
        # Fails at the start rather than at the first request.
        security.credentials(target)
        self._links = {}

    async def ask(self, generation, routed, deadline, request_id):
        """Asks for the rows that stay.

        Args:
            generation: The `Generation` that they come from.
            routed: A `Routed`.
            deadline: Until when the caller waits, by `time.monotonic`.
            request_id: Id of the request.

        Returns:
            `Answers` for the rows in `routed.staying`.

        Raises:
            SplitError: If there is no answer.
        """
        left_s = deadline - time.monotonic()
        left_s -= min(_SHARE * left_s, _MAX_MARGIN_S)
        if left_s <= 0:
            raise DeadlinePassed("Nothing is left to ask a further worker.")
        arrays = {"feature": routed.feature}
        if routed.carry is not None:
            arrays["carry"] = routed.carry
        return await asyncio.wrap_future(
            self._link(generation).submit(arrays, left_s, request_id=request_id)
        )

    def greet(self, generation):
        """Says hello for a generation, so that no request has to wait for it.

        Args:
            generation: A `Generation`; nothing happens for one that ends with
                the model's last exit.

        Raises:
            SplitError: If the further worker does not fit or is not there. It
                is asked again with the requests.
        """
        if generation.bundle.is_last:
            return
        if not self._link(generation).connect(_GREETING_S):
            raise CloudUnavailable(
                f"Expected a further worker at {self._target}. Received: no "
                "answer. Start it, and look at the network."
            )

    def forget(self, generation):
        """Closes the link of a generation that is no longer served."""
        link = self._links.pop(generation, None)
        if link is not None:
            link.close()

    def close(self):
        """Closes all links."""
        for generation in list(self._links):
            self.forget(generation)

    def _link(self, generation):
        if generation not in self._links:
            self._links[generation] = Link.of(
                generation.bundle.manifest,
                self._target,
                self._security,
                codec=self._codec,
                edge_id=self._edge_id,
                max_in_flight=_MAX_IN_FLIGHT,
            )
        return self._links[generation]


def make(settings):
    """The `Forwarder` of some `Settings`; `None` if they name none.

    Raises:
        ValueError: If they do not go together.
    """
    if settings.forward is None:
        return None
    token_file = settings.forward_token_file
    security = ClientSecurity(
        ca=settings.forward_ca,
        cert=settings.forward_cert,
        key=settings.forward_key,
        token=None if token_file is None else read_tokens(token_file)[0],
        insecure=settings.forward_insecure,
    )
    is_certified = settings.forward_cert is not None
    return Forwarder(
        settings.forward,
        security,
        codec=settings.forward_codec,
        edge_id="" if is_certified else settings.forward_edge_id,
    )
