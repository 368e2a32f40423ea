// Browsers refuse workers on pages that are opened from a disk. There the search's worker runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      this.inside = this.frame.contentWindow
      const load = address =>
        new Promise((done, failed) => {
          const script = this.frame.contentDocument.createElement("script")
          Object.assign(script, { src: address, onload: done, onerror: failed })
          this.frame.contentDocument.body.appendChild(script)
        })
      this.inside.postMessage = data => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })))
      this.inside.importScripts = (...addresses) => addresses.reduce((last, each) => last.then(() => load(each)), Promise.resolve())
      this.ready = load(url)
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
  window.Worker = window.IFrameWorker
}
