// Call: one call from this page: microphone, peer connection, the gateway's events. It shows nothing; whoever
// made it is told through `on(kind, detail)`: connecting, talking, shaky, text, stats, ended, problem.

const GATHER_MS = 1500; // candidates that take longer are rarely the ones used
const CONNECT_MS = 15000;
const SHAKY_MS = 8000; // how long ICE may try to come back
const STATS_MS = 1000;

export class Call {
  constructor(iceServers, persona, on) {
    this.on = on;
    this.persona = persona;
    this.over = false;
    this.key = null;
    this.connection = new RTCPeerConnection({ iceServers, bundlePolicy: "max-bundle" });
    this.connection.onconnectionstatechange = () => this.stateChanged();
    this.connection.ontrack = (event) => this.on("track", event.streams[0] ?? new MediaStream([event.track]));
    this.timers = new Set();
    this.previous = null;
  }

  /** Ask for the microphone, offer, connect. Never throws: a failure is told as `problem`. */
  async start() {
    try {
      await this.openMicrophone();
      if (this.over) return this.release();
      this.on("connecting");
      await this.offer();
    } catch (error) {
      this.fail(error.problem ?? "unreachable", error.said, error.retryAfter);
    }
  }

  async openMicrophone() {
    if (!window.isSecureContext || !navigator.mediaDevices) throw { problem: "insecure" };
    try {
      this.microphone = await navigator.mediaDevices.getUserMedia({
        audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
      });
    } catch (error) {
      const names = { NotAllowedError: "microphoneRefused", SecurityError: "microphoneRefused", NotFoundError: "noMicrophone", OverconstrainedError: "noMicrophone" };
      throw { problem: names[error.name] ?? "microphoneBusy" };
    }
    this.on("microphone", this.microphone);
    const [track] = this.microphone.getAudioTracks();
    track.onended = () => this.fail("noMicrophone");
    this.connection.addTransceiver(track, { direction: "sendrecv", streams: [this.microphone] });
  }

  async offer() {
    await this.connection.setLocalDescription();
    await this.gathered();
    if (this.over) return;
    const { sdp, type } = this.connection.localDescription;
    const response = await fetch("api/call", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sdp, type, ...(this.persona ? { persona: this.persona } : {}) }),
    });
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw refusal(response, body);
    this.key = body.id;
    if (this.over) return this.tellGateway();
    this.listen();
    this.later(CONNECT_MS, () => this.polling === undefined && this.fail("notConnected"));
    await this.connection.setRemoteDescription({ type: body.type, sdp: body.sdp });
  }

  gathered() {
    return new Promise((resolve) => {
      const check = () => this.connection.iceGatheringState === "complete" && resolve();
      this.connection.addEventListener("icegatheringstatechange", check);
      this.later(GATHER_MS, resolve);
      check();
    });
  }

  listen() {
    this.events = new EventSource(`api/call/${this.key}/events`);
    this.events.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "text") this.on("text", message);
      else if (message.type === "stats") this.gatewaySees = message;
      else if (message.type === "ended") this.endedThere(message);
    };
  }

  stateChanged() {
    const state = this.connection.connectionState;
    if (this.over) return;
    if (state === "connected") {
      this.polling ??= this.every(STATS_MS, () => this.measure()); // from now on a failure is a loss
      this.on("talking");
    } else if (state === "disconnected") {
      this.on("shaky");
      this.later(SHAKY_MS, () => this.connection.connectionState !== "connected" && this.fail("lost"));
    } else if (state === "failed") {
      this.fail(this.polling === undefined ? "notConnected" : "lost");
    }
  }

  /** Read the browser's figures of the last second. */
  async measure() {
    const figures = { sent: 0, received: 0, lost: 0, delay: 0, emitted: 0 };
    for (const report of (await this.connection.getStats()).values()) {
      if (report.type === "candidate-pair" && report.nominated && report.currentRoundTripTime !== undefined) {
        figures.roundTrip ??= report.currentRoundTripTime;
      } else if (report.type === "remote-inbound-rtp") {
        if (report.roundTripTime) figures.roundTrip = report.roundTripTime;
        figures.lostOut = report.fractionLost ?? 0;
      } else if (report.type === "inbound-rtp") {
        figures.received = report.packetsReceived;
        figures.lost = report.packetsLost;
        figures.delay = report.jitterBufferDelay;
        figures.emitted = report.jitterBufferEmittedCount;
      }
    }
    const before = this.previous ?? { received: 0, lost: 0, delay: 0, emitted: 0 };
    this.previous = figures;
    const arrived = figures.received - before.received;
    const lost = Math.max(0, figures.lost - before.lost);
    const emitted = figures.emitted - before.emitted;
    if (this.over) return;
    this.on("stats", {
      roundTripMs: figures.roundTrip === undefined ? undefined : 1000 * figures.roundTrip,
      lostIn: arrived + lost > 0 ? lost / (arrived + lost) : 0,
      lostOut: figures.lostOut,
      bufferedMs: (emitted > 0 ? (1000 * (figures.delay - before.delay)) / emitted : 0) + (this.gatewaySees?.buffer_ms ?? 0),
    });
  }

  mute(muted) {
    for (const track of this.microphone?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  /** The caller hangs up. */
  hangUp() {
    if (this.over) return;
    this.release();
    this.tellGateway();
    this.on("ended", {});
  }

  endedThere(message) {
    if (this.over) return;
    const byUs = message.by === "caller" && message.reason === "hung up";
    this.release();
    if (byUs) this.on("ended", {});
    else if (message.by === "caller") this.on("problem", { problem: "lost" });
    else this.on("problem", { problem: "ended", said: message.reason });
  }

  fail(problem, said, retryAfter) {
    if (this.over) return;
    this.release();
    this.tellGateway();
    this.on("problem", { problem, said, retryAfter });
  }

  /** The slot comes free also when this page is going away. */
  tellGateway() {
    if (this.key === null) return;
    fetch(`api/call/${this.key}`, { method: "DELETE", keepalive: true }).catch(() => {});
    this.key = null;
  }

  release() {
    this.over = true;
    this.events?.close();
    for (const timer of this.timers) clearTimeout(timer);
    for (const track of this.microphone?.getTracks() ?? []) track.stop();
    this.connection.close();
  }

  later(ms, action) {
    this.timers.add(setTimeout(action, ms));
  }

  every(ms, action) {
    const timer = setInterval(action, ms);
    this.timers.add(timer);
    return timer;
  }
}

function refusal(response, body) {
  const retryAfter = Math.ceil(body.retry_after_s ?? Number(response.headers.get("Retry-After")) ?? 0);
  const said = body.error ?? `status ${response.status}`;
  if (response.status === 503 && /busy/.test(said)) return { problem: "full", said, retryAfter: retryAfter || 5 };
  if (response.status === 503) return { problem: "stopping", said, retryAfter: retryAfter || 10 };
  return { problem: "refused", said };
}
