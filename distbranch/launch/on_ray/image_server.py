"""What answers requests to `distbranch serve`: images that wait together go through the network together.

Only `serving` imports this module, when Ray runs: Ray reads its settings when it is imported.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ray import serve
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse

from distbranch.engine.answer_pictures import summarise_predictions
from distbranch.engine.predict import Prediction, decode_input
from distbranch.errors import reason_of
from distbranch.export.onnx_model import OnnxModel
from distbranch.plugins import load_plugins
from distbranch.report.prediction_table import describe_prediction, read_thresholds

MOST_IMAGES = 32  # in a batch: a CPU gains little beyond
SECONDS_TO_WAIT = 0.005  # for more images; a network takes about as long for one
HOW = "Send one image: its bytes as the body, or a form with one file."


class ImageServer:
    """One replica.

    Args:
        file: that `distbranch export` wrote.
        most_bytes: of a request.
        num_threads: of ONNX Runtime.
        plugins: to load first.
    """

    def __init__(
        self, file: str, *, most_bytes: int, num_threads: int, plugins: Sequence[str]
    ) -> None:
        load_plugins(plugins)
        self.model = OnnxModel(Path(file), num_threads=num_threads)
        self.most_bytes = most_bytes

    async def __call__(self, request: Request) -> JSONResponse:
        """POST of an image: what `distbranch predict --format json` says of it. GET: what is served."""
        if request.method == "GET":
            tasks = [task.to_json() for task in self.model.tasks.tasks]
            return JSONResponse({"tasks": tasks, "thresholds": self.model.thresholds})
        try:
            if request.method != "POST":
                raise HTTPException(
                    405, f"The method should be POST, found {request.method}. {HOW}"
                )
            name, content = await self._read_image(request)
            if not content:
                raise HTTPException(400, f"The image is empty. {HOW}")
            answer = await self.answer_together(content)
            if isinstance(answer, str):
                raise HTTPException(400, f"What was sent cannot be read: {answer}. {HOW}")
            return JSONResponse({**answer, "image": name})
        except HTTPException as refusal:
            return JSONResponse({"error": refusal.detail}, refusal.status_code)

    @serve.batch(max_batch_size=MOST_IMAGES, batch_wait_timeout_s=SECONDS_TO_WAIT)  # type: ignore[untyped-decorator]
    async def answer_together(self, contents: Sequence[bytes]) -> list[dict[str, Any] | str]:
        """The answer to every image, or why it cannot be read."""
        # In a thread, so that requests are received meanwhile.
        return await asyncio.to_thread(self.answer_images, contents)

    @torch.inference_mode()
    def answer_images(self, contents: Sequence[bytes]) -> list[dict[str, Any] | str]:
        """See `answer_together`."""
        model = self.model
        answers: list[dict[str, Any] | str] = [""] * len(contents)
        whole, images = [], []
        for number, content in enumerate(contents):
            try:
                images.append(decode_input(content, model.preprocessing))
                whole.append(number)
            except (OSError, ValueError) as error:
                answers[number] = reason_of(error)
        if not images:
            return answers

        found = model.tasks.predict(model(torch.stack(images)))
        for row, number in enumerate(whole):
            one = Prediction(Path(), {name: values[row] for name, values in found.items()})
            (summary,) = summarise_predictions(model.tasks.tasks, [one])
            answers[number] = describe_prediction(
                model.tasks.tasks, summary, read_thresholds(model)
            )
        return answers

    async def _read_image(self, request: Request) -> tuple[str, bytes]:
        """Name and bytes of the image of a request. Raises HTTPException."""
        kind = request.headers.get("content-type", "")
        if not kind.startswith("multipart/form-data"):
            return "", b"".join([part async for part in self._read_body(request)])
        try:
            form = await MultiPartParser(request.headers, self._read_body(request)).parse()
        except (MultiPartException, KeyError) as error:  # KeyError: a form without a boundary
            raise HTTPException(
                400, f"The form cannot be read ({reason_of(error)}). {HOW}"
            ) from None
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise HTTPException(400, f"The form should have one file, found {len(files)}. {HOW}")
        return files[0].filename or "", await files[0].read()

    async def _read_body(self, request: Request) -> AsyncIterator[bytes]:
        """The body part by part, as far as it is not too large."""
        num_bytes = 0
        async for part in request.stream():
            num_bytes += len(part)
            if num_bytes > self.most_bytes:
                raise HTTPException(
                    413,
                    f"An image should have {self.most_bytes:,} bytes at most, found more. Send a smaller one, or serve with a larger "
                    "--max-megabytes.",
                )
            yield part
