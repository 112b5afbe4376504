// Plays 16-bit stereo PCM as it arrives. It waits for a tenth of a second first, and never falls half a second behind.

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frames = [];
    this.waiting = 0; // samples
    this.at = 0; // of the first frame
    this.plays = false;
    this.port.onmessage = ({ data }) => {
      const frame = new Int16Array(data);
      this.frames.push(frame);
      this.waiting += frame.length / 2;
      while (this.waiting > sampleRate / 2) {
        this.waiting -= this.frames.shift().length / 2 - this.at;
        this.at = 0;
      }
      this.plays ||= this.waiting >= sampleRate / 10;
    };
  }

  process(_, [[left, right]]) {
    for (let index = 0; this.plays && index < left.length; index += 1) {
      const frame = this.frames[0];
      if (frame === undefined) {
        this.plays = false;
        break;
      }
      left[index] = frame[this.at * 2] / 32768;
      right[index] = frame[this.at * 2 + 1] / 32768;
      this.at += 1;
      this.waiting -= 1;
      if (this.at * 2 >= frame.length) {
        this.frames.shift();
        this.at = 0;
      }
    }
    return true;
  }
}

registerProcessor("player", Player);
