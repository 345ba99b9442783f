// The WebSocket: takes batches, tells when it is ready for more, comes back by itself.

const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 3000;
const SILENT_MS = 3000;
const HEAD_BYTES = 24;

export class Link {
  /** `take(batch)` gets each batch, `show(bitmap, head)` each picture, `changed(open)` the state of the line. */
  constructor({ take, show, changed }) {
    Object.assign(this, { take, show, changed });
    this.waitMs = FIRST_WAIT_MS;
    this.heardAt = performance.now();
    this.open();
    setInterval(() => this.watch(), 500);
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/live`);
    this.socket = socket;
    this.awaited = null;
    this.heardAt = performance.now();
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.waitMs = FIRST_WAIT_MS;
      this.changed(true);
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      this.heardAt = performance.now();
      if (typeof data === "string") this.batch(JSON.parse(data));
      else this.picture(data);
    };
    socket.onclose = () => {
      if (socket === this.socket) this.again();
    };
  }

  batch(batch) {
    this.take(batch);
    if (batch.picture) this.awaited = batch.n;
    else this.send({ type: "ack", n: batch.n });
  }

  async picture(data) {
    const [capturedMs, ptsS, seq] = new Float64Array(data.slice(0, HEAD_BYTES));
    try {
      const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, HEAD_BYTES)], { type: "image/jpeg" }));
      this.show(bitmap, { capturedMs, ptsS, seq });
      bitmap.close();
    } finally {
      if (this.awaited !== null) this.send({ type: "ack", n: this.awaited });
      this.awaited = null;
    }
  }

  /** Whether it could be sent. */
  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** A line that says nothing is as good as closed; the server speaks twice a second. */
  watch() {
    if (this.socket && performance.now() - this.heardAt > SILENT_MS) {
      const socket = this.socket;
      this.again();
      socket.close();
    }
  }

  again() {
    if (!this.socket) return;
    this.socket = null;
    this.changed(false);
    setTimeout(async () => {
      // A page whose token is not right any more asks for it.
      const answer = await fetch("/", { method: "HEAD" }).catch(() => null);
      if (answer?.status === 401) location.reload();
      else this.open();
    }, this.waitMs);
    this.waitMs = Math.min(this.waitMs * 2, LONGEST_WAIT_MS);
  }
}
