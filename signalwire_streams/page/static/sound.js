// Listens to one stream.

export class Sound {
  /** Calls `report(text, isBad)` with a sentence when something changes. */
  constructor(report) {
    this.report = report;
    this.volume = 0.8;
    this.muted = false;
    this.socket = null;
    this.context = null;
    this.analyser = null;
  }

  get playing() {
    return this.socket !== null;
  }

  start(id) {
    this.stop();
    if (!window.AudioContext || !window.AudioWorkletNode) {
      this.report("This browser plays audio only over https or from localhost.", true);
      return;
    }
    const socket = new WebSocket(addressOf(`audio?stream=${id}`));
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.report("Connecting…");
    let node = null;
    socket.onmessage = async ({ data }) => {
      if (typeof data !== "string") {
        node?.port.postMessage(data, [data]);
        return;
      }
      try {
        const created = await this.#open(JSON.parse(data).rate);
        if (this.socket !== socket) return;
        node = created;
        this.report("Listening: inbound on the left, outbound on the right.");
      } catch (error) {
        if (this.socket !== socket) return;
        this.stop();
        this.report(`The browser can't play this stream: ${error.message}.`, true);
      }
    };
    socket.onclose = ({ code, reason }) => {
      if (this.socket !== socket) return;
      this.stop();
      if (code === 1000) this.report("The stream has ended.");
      else this.report(reason || "The audio was interrupted: press Listen to try again.", true);
    };
  }

  async #open(rate) {
    const context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
    this.context = context;
    await context.audioWorklet.addModule("worklet.js");
    const node = new AudioWorkletNode(context, "player", { numberOfInputs: 0, outputChannelCount: [2] });
    this.gain = context.createGain();
    this.analyser = context.createAnalyser();
    this.#adjust();
    node.connect(this.gain).connect(this.analyser).connect(context.destination);
    await context.resume();
    return node;
  }

  stop() {
    this.socket?.close();
    this.context?.close();
    this.socket = this.context = this.analyser = this.gain = null;
    this.report("Inbound plays on the left, outbound on the right.");
  }

  setVolume(volume) {
    this.volume = volume;
    this.#adjust();
  }

  setMuted(muted) {
    this.muted = muted;
    this.#adjust();
  }

  #adjust() {
    if (this.gain) this.gain.gain.value = this.muted ? 0 : this.volume;
  }

  /** Returns the loudness of what is played, from 0 to 1. */
  get level() {
    if (this.analyser === null) return 0;
    const samples = new Float32Array(256);
    this.analyser.getFloatTimeDomainData(samples);
    const peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
    return peak ? Math.max(0, 1 + Math.log10(peak) / 3) : 0;
  }
}

export function addressOf(path) {
  const address = new URL(path, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  address.hash = "";
  return address.href;
}
