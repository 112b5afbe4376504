from typing import Any

from pipecat.audio.dtmf.types import KeypadEntry

class Frame: ...

class AudioRawFrame(Frame):
    audio: bytes
    sample_rate: int
    num_channels: int

class InputAudioRawFrame(AudioRawFrame):
    def __init__(self, audio: bytes, sample_rate: int, num_channels: int) -> None: ...

class InputDTMFFrame(Frame):
    def __init__(self, button: KeypadEntry) -> None: ...

class InputTransportMessageFrame(Frame):
    def __init__(self, message: object) -> None: ...

class OutputTransportMessageFrame(Frame):
    message: Any

class OutputTransportMessageUrgentFrame(Frame):
    message: Any

class InterruptionFrame(Frame): ...
class EndFrame(Frame): ...
class CancelFrame(Frame): ...
