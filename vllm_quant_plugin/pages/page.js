"use strict";
// A copy that needs no permission and works from file://: select, then the browser's own copy command. Where a browser
// has neither that nor a clipboard, the text stays selected.
for (const button of document.querySelectorAll("button[data-copies]")) {
  const source = document.getElementById(button.dataset.copies), said = document.getElementById(button.dataset.says);
  button.hidden = false;
  button.addEventListener("click", async () => {
    const plain = event => { event.clipboardData.setData("text/plain", source.textContent); event.preventDefault(); };
    getSelection().selectAllChildren(source);
    document.addEventListener("copy", plain, { once: true });
    let copied = false;
    try { copied = document.execCommand("copy"); } catch { copied = false; }
    document.removeEventListener("copy", plain);
    if (!copied) try { await navigator.clipboard.writeText(source.textContent); copied = true; } catch { copied = false; }
    said.textContent = copied ? "Copied." : "The command is selected: copy it with Ctrl+C or \u2318C.";
  });
}
// Paper cannot be unfolded.
addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });
