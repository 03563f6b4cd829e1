// Shows what a command says while it says it. Without this, the page shows it when it is loaded again.
const run = document.getElementById("run");
const put = (id, text) => { document.getElementById(id).textContent = text; };
const events = new EventSource(run.dataset.events);
events.onmessage = (event) => {
  const news = JSON.parse(event.data);
  for (const id of ["state", "seconds", "done", "total"]) put(id, news[id]);
  put("lines", news.lines.join("\n"));
  document.getElementById("progress").hidden = !news.total;
  const bar = document.getElementById("bar");
  bar.max = news.total || 1;
  bar.value = news.done;
  if (!news.running) {
    events.close();
    document.getElementById("interrupt").remove();
  }
};
