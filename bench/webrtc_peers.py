"""Echo servers to measure beside the gateway: stock aiortc, and pipecat with its SmallWebRTC transport.

    python bench/webrtc_peers.py aiortc|pipecat

Each prints `port N` and answers POST /api/call {sdp, type} with {id, sdp, type}, as the gateway does. Both
are used as their own documentation shows: the track that came is sent back; frames in are frames out.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable

from aiohttp import web

HOST = "127.0.0.1"
Answer = Callable[[dict[str, str]], Awaitable[dict[str, str]]]
_KEPT: set[object] = set()


async def answer_aiortc(offer: dict[str, str]) -> dict[str, str]:
    """The received track goes back on the same connection."""
    from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    _KEPT.add(connection)
    connection.on("track", connection.addTrack)
    await connection.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
    await connection.setLocalDescription(await connection.createAnswer())
    return {"id": str(id(connection)), "sdp": connection.localDescription.sdp, "type": "answer"}


async def answer_pipecat(offer: dict[str, str]) -> dict[str, str]:
    """The transport's input, a processor that turns what came into what goes, the transport's output."""
    from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.runner import PipelineRunner
    from pipecat.pipeline.task import PipelineParams, PipelineTask
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    from pipecat.transports.base_transport import TransportParams
    from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
    from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport

    class Echo(FrameProcessor):
        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            await super().process_frame(frame, direction)
            if isinstance(frame, InputAudioRawFrame):
                frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
            await self.push_frame(frame, direction)

    connection = SmallWebRTCConnection(ice_servers=[])
    await connection.initialize(sdp=offer["sdp"], type="offer")
    rates = {"audio_in_sample_rate": 24_000, "audio_out_sample_rate": 24_000}
    transport = SmallWebRTCTransport(
        connection, TransportParams(audio_in_enabled=True, audio_out_enabled=True, **rates)
    )
    pipeline = Pipeline([transport.input(), Echo(), transport.output()])
    task = PipelineTask(pipeline, params=PipelineParams(**rates), idle_timeout_secs=None)
    runner = asyncio.ensure_future(PipelineRunner(handle_sigint=False).run(task))
    _KEPT.update((connection, runner))
    answer = connection.get_answer()
    return {"id": answer["pc_id"], "sdp": answer["sdp"], "type": "answer"}


async def serve(answer: Answer) -> None:
    async def offered(request: web.Request) -> web.Response:
        return web.json_response(await answer(await request.json()))

    application = web.Application()
    application.router.add_post("/api/call", offered)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    print(f"port {runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    logging.disable(logging.WARNING)
    if sys.argv[1] == "pipecat":
        from loguru import logger

        logger.remove()
        asyncio.run(serve(answer_pipecat))
    else:
        asyncio.run(serve(answer_aiortc))


if __name__ == "__main__":
    main()
