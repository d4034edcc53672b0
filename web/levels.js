// Levels: how loud you and the agent are, 20 times a second while a call lasts.

const FLOOR_DB = -60;
const PERIOD_MS = 50;

export class Levels {
  constructor(show) {
    this.show = show; // (who, dB)
    this.sources = new Map();
  }

  /** Watch a stream under a name; the audio context starts with the click that placed the call. */
  watch(who, stream) {
    this.context ??= new AudioContext();
    this.context.resume();
    const analyser = this.context.createAnalyser();
    analyser.fftSize = 1024;
    this.context.createMediaStreamSource(stream).connect(analyser);
    this.sources.set(who, { analyser, samples: new Float32Array(analyser.fftSize), db: FLOOR_DB });
    this.timer ??= setInterval(() => this.measure(), PERIOD_MS);
  }

  measure() {
    for (const [who, source] of this.sources) {
      source.analyser.getFloatTimeDomainData(source.samples);
      const power = source.samples.reduce((sum, x) => sum + x * x, 0) / source.samples.length;
      const db = Math.max(FLOOR_DB, 10 * Math.log10(power + 1e-12));
      source.db = db > source.db ? db : Math.max(db, source.db - 3); // up at once, down 60 dB a second
      this.show(who, source.db);
    }
  }

  stop() {
    clearInterval(this.timer);
    this.timer = undefined;
    for (const who of this.sources.keys()) this.show(who, FLOOR_DB);
    this.sources.clear();
    this.context?.close();
    this.context = undefined;
  }
}
