"""Videos: what a request may ask for, and the answer when the video is ready. Its link leads nowhere."""

from typing import Any

from grokflask.sandbox.models import VIDEO_TICKS
from grokflask.sandbox.refusals import TEAM_ID, refuse, refuse_model
from grokflask.sandbox.request import ModelRequest

_FAILING_PROMPT = "sandbox-failed"
"""A video whose prompt begins with this fails."""
_DURATION_S = 8
_LONGEST_S = 15


class VideoRequest(ModelRequest, kw_only=True):
    """The body of a request for a video, an edit or an extension."""

    prompt: str
    duration: int | None = None


def make_video(asked: VideoRequest, model: str, origin: str) -> tuple[dict[str, Any], int]:
    """Return the final answer and its cost in ticks; raises RefusalError."""
    ticks = VIDEO_TICKS.get(model)
    if ticks is None:
        raise refuse_model(model)
    duration_s = _DURATION_S if asked.duration is None else asked.duration
    if not 1 <= duration_s <= _LONGEST_S:
        raise refuse(400, f"duration must be between 1 and {_LONGEST_S} seconds.")
    if asked.prompt.startswith(_FAILING_PROMPT):
        error = {"code": "invalid_argument", "message": f"The prompt was refused for team {TEAM_ID}."}
        return {"status": "failed", "error": error}, 0
    cost_ticks = ticks * duration_s
    video = {"url": f"{origin}/sandbox/video.mp4", "duration": duration_s, "respect_moderation": True}
    usage = {"cost_in_usd_ticks": cost_ticks}
    return {"status": "done", "video": video, "model": model, "usage": usage}, cost_ticks
