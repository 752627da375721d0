"""
Errors of the attester.

    AttesterError
    ├── CBORError            bytes that are not the deterministic CBOR of this profile
    ├── COSEError            a COSE_Sign1 message that is refused
    │   └── SignatureError   ... because its signature is wrong
    ├── ClaimError           a claim that does not have the form of the claims table
    ├── KeyFileError         a key file that is missing, damaged or open to others
    ├── ConfigError          a configuration that cannot be used
    ├── WeightsError         a model folder that cannot be measured, read or walked
    ├── FrontReceiptError    a front's receipt that is refused
    ├── EngineError          the inference engine does not answer as it should
    └── VerifierError        the verifier refused, or cannot be reached

Leaf names end in ``Error``.  Every message says what is wrong and, if the operator can do
something about it, what to do.
"""

from collections.abc import Iterable


class AttesterError(Exception):
    """The base of all of them; it is never raised itself."""


class CBORError(AttesterError):
    """Bytes are not the deterministic CBOR this profile accepts (RFC 8949 §4.2.1)."""


class COSEError(AttesterError):
    """A COSE_Sign1 message is refused (RFC 9052 §4.2)."""


class SignatureError(COSEError):
    """The signature does not fit the message and the key."""


class ClaimError(AttesterError):
    """A claim does not have the form that the claims table gives it."""

    def __init__(self, claim: str, message: str) -> None:
        # Parsers quote their input, which a node sends: it is shortened, and unprintable characters are replaced.
        text = "".join(c if c.isprintable() else "?" for c in message[:200])
        super().__init__(f"{claim}: {text}")
        self.claim = claim


class UsageClaimError(AttesterError):
    """A usage claim is refused: it is malformed or, *is_forged*, not signed by the node that it names."""

    def __init__(self, message: str, *, is_forged: bool = False) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in message[:300]))
        self.is_forged = is_forged


class KeyFileError(AttesterError):
    """A private key file is missing, damaged, or readable by others."""


class ConfigError(AttesterError):
    """A configuration file or value cannot be used."""


class WeightsError(AttesterError):
    """A model folder cannot be measured, read or walked."""


class TruncatedError(WeightsError):
    """A file of weights ends before its own header says: it was not downloaded to its end."""


class NoTensorsError(WeightsError):
    """A model has no file whose tensors can be walked."""


class EngineError(AttesterError):
    """The inference engine did not answer, or its answer is wrong."""


class EngineSilentError(EngineError):
    """Nothing answers at the engine's URL."""


class EngineRefusalError(EngineError):
    """
    The engine answers a request with another status than 200.

    Args:
        message: What to tell the operator.
        status: Of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class FrontReceiptError(AttesterError):
    """What should be a front's receipt is malformed, or not signed by the endpoint's key."""


class VerifierError(AttesterError):
    """
    The verifier refused a request, or could not be reached.

    Args:
        status: The HTTP status; `None` if there was no answer, or one that cannot be read.
        retry_after_s: After how many seconds the verifier asks for the request again.
        is_temporary: Whether the same request may succeed later.
        may_have_arrived: Whether it may have been served although nothing says so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        is_temporary: bool = False,
        may_have_arrived: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.is_temporary = is_temporary
        self.may_have_arrived = may_have_arrived


def join_sentences(parts: Iterable[str]) -> str:
    """Join *parts* on one line; each part that another one follows ends in a full stop, ``!`` or ``?``."""
    text = ""
    for part in (" ".join(part.split()) for part in parts):
        if text and part:
            text += " " if text.endswith((".", "!", "?")) else ". "
        text += part
    return text
