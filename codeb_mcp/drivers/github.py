"""Whether a pull request is still open, asked of GitHub's REST API (`GET /repos/{owner}/{repo}/pulls/{number}`).

Implements `PullRequests`. Only a clear answer counts: `open` or `closed`; everything else is None, so that a preview is never
ended because a question failed.
"""

from __future__ import annotations

from pathlib import Path

from codeb_mcp.model.errors import DriverRefused, DriverUnavailable

ASK_SECONDS = 10.0


class GitHubPullRequests:
    """Asks with the token in `token_file`; without one it is not asked at all."""

    def __init__(self, api: str, token_file: Path | None) -> None:
        self._api = api.rstrip("/")
        self._token_file = token_file

    @property
    def configured(self) -> bool:
        """Whether there is a token to ask with."""
        return self._token_file is not None

    async def state(self, repository: str, number: int) -> str | None:
        """`open` or `closed`; None when GitHub says that it does not know the pull request. Raises DriverUnavailable or
        DriverRefused when there is no answer that can be believed."""
        import aiohttp

        headers = {"Authorization": f"Bearer {self._token()}", "Accept": "application/vnd.github+json"}
        url = f"{self._api}/repos/{repository}/pulls/{number}"
        limit = aiohttp.ClientTimeout(total=ASK_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.get(url, headers=headers, allow_redirects=False) as answer,
            ):
                return _state(answer.status, await answer.json() if answer.status == 200 else None)
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            raise DriverUnavailable(
                f"GitHub does not answer: {type(error).__name__}", hint="Check github.api and the network."
            ) from None

    def _token(self) -> str:
        try:
            text = self._token_file.read_text("ascii").strip() if self._token_file else ""
        except (OSError, UnicodeDecodeError):
            text = ""
        if not text or any(char.isspace() for char in text):
            raise DriverRefused(
                "the token file for GitHub cannot be used", hint="Put one token into github.token_file."
            )
        return text


def _state(status: int, body: object) -> str | None:
    if status == 404:
        return None
    said = body.get("state") if isinstance(body, dict) else None
    if status != 200 or said not in ("open", "closed"):
        hint = "The token needs to read pull requests of the repository."
        raise DriverRefused(f"GitHub answered with status {status}", hint=hint, status=status)
    return str(said)
