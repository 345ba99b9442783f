// The server's clock on this side, so that ages are counted on here and stay right when nothing comes any more.

const BUCKET_MS = 30_000;

/** Says what time it is at the server, by the fastest message of the last half minute or so. */
export class ServerClock {
  constructor() {
    this.forget();
  }

  forget() {
    this.current = -Infinity;
    this.previous = -Infinity;
    this.since = performance.now();
  }

  /** A message that was sent at `sentMs` has just arrived: the offset is at least this. */
  hear(sentMs) {
    const now = performance.now();
    if (now - this.since > BUCKET_MS) {
      this.previous = this.current;
      this.current = -Infinity;
      this.since = now;
    }
    this.current = Math.max(this.current, sentMs - now);
  }

  get known() {
    return Math.max(this.current, this.previous) > -Infinity;
  }

  /** Milliseconds of the server's monotonic clock. */
  now() {
    return performance.now() + Math.max(this.current, this.previous);
  }
}
