// Show that there are new notes. Without JavaScript a visitor loads the page again.
// Loading the page again would lose what somebody is writing. They are told instead, and load it when they like.
function show() {
  const fields = [...document.querySelectorAll("input, textarea")];
  const written = fields.some((field) => field.value !== field.defaultValue);
  if (written) document.getElementById("news").hidden = false;
  else location.reload();
}

function talk(again) {
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/live");
  socket.onmessage = (message) => {
    const said = JSON.parse(message.data);
    if (said.live) document.documentElement.dataset.live = "yes";
    if (again || said.added || said.reload) show();
  };
  // 1008 means that the session has ended: the page that is loaded then asks for the password.
  socket.onclose = (event) => (event.code === 1008 ? location.reload() : setTimeout(talk, 5000, true));
}
talk(false);
