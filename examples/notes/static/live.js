// Show that there are new notes. Without JavaScript a visitor loads the page again.
function talk(again) {
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/live");
  socket.onmessage = (message) => {
    const said = JSON.parse(message.data);
    if (said.live) document.documentElement.dataset.live = "yes";
    if (again || said.added || said.reload) location.reload();
  };
  // 1008 means that the session has ended: the page that is loaded then asks for the password.
  socket.onclose = (event) => (event.code === 1008 ? location.reload() : setTimeout(talk, 5000, true));
}
talk(false);
