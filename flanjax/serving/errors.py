"""What the server refuses, as the API's clients know it: a status code and an error object.

    ApiError(400, "temperature is -1: it must be 0 or more", param="temperature").body()
    # {"error": {"message": "temperature is -1: ...", "type": "invalid_request_error", "param": "temperature",
    #            "code": None}}

Format: https://platform.openai.com/docs/guides/error-codes, and the error objects of the API reference.
"""

from typing import Any

from flanjax.errors import FlanjaxError

TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ServingError(FlanjaxError):
    """An address that cannot be listened at, or a key or limit that makes no sense."""


class ApiError(Exception):
    """A request that is not answered.

    Arguments:
      status: of HTTP.
      message: what is wrong, and the remedy.
      param: the field of the request that is to blame.
      code: for programs, such as "model_not_found".
      retry_after: seconds after which the same request may be answered.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
