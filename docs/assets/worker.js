// A page opened from the disk may start no Worker: there, the search runs in a hidden frame.
if (location.protocol === "file:") {
  const READY = "the frame is ready";

  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      this.ready = new Promise((resolve) => {
        window.addEventListener("message", ({ source, data }) => {
          if (source !== this.frame.contentWindow) return;
          if (data === READY) resolve();
          else this.dispatchEvent(new MessageEvent("message", { data }));
        });
      });
      const page = this.frame.contentDocument;
      page.open();
      page.write(
        `<!doctype html><script>postMessage = (data) => parent.postMessage(data, "*")<\/script>` +
          `<script src="${new URL(url, location.href)}"><\/script><script>postMessage("${READY}")<\/script>`,
      );
      page.close();
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
