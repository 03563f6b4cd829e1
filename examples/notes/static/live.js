// Show that there are new notes. Without JavaScript a visitor loads the page again.
const talk = new WebSocket(location.origin.replace(/^http/, "ws") + "/live");
talk.onmessage = (message) => {
  const said = JSON.parse(message.data);
  if (said.live) document.documentElement.dataset.live = "yes";
  if (said.added || said.reload) location.reload();
};
