"""The page itself, made with Gradio.

Nothing on it comes from elsewhere: letters are the system's, Gradio's
statistics are off, and `server` forbids the browser to ask anybody else.
"""

import os
import pathlib

import numpy as np

from keras_earlyexit.report import pictures

# Read by Gradio when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

_HERE = pathlib.Path(__file__).parent
_PER_EXIT, _STEP = 12, 0.001
_CANVAS = 320
_HELLO = "Choose a sample, draw one, or upload a picture."


def build(trying, images):
    """The page for a model, as `gradio.Blocks`.

    Args:
        trying: A `trying.Trying`.
        images: An `images.Images`.
    """
    import gradio as gr

    chosen = trying.samples_by_exit(_PER_EXIT)
    render = _renderer()
    is_gray = images.shape[-1] == 1

    def answer(sample, label=None):
        if sample is None:
            return render(None, "There is nothing to see on it.")
        return render(trying.answer(sample, label))

    def pick(event: gr.SelectData):
        row = chosen[event.index]
        return answer(trying.x[row], trying.y[row])

    def read_drawing(value):
        picture = None if value is None else value["composite"]
        return answer(None if picture is None else images.from_drawing(picture))

    def read_upload(picture):
        if picture is None:
            return render(None, _HELLO)
        how = images.from_drawing if is_gray else images.from_picture
        return answer(how(picture))

    def move(threshold):
        if threshold is None:
            return gr.skip(), gr.skip()
        trying.set_threshold(threshold)
        return curve()

    def curve():
        accuracy, cost = trying.figures()
        figure = pictures.narrow(trying.curve())
        text = (
            f"At this threshold {accuracy:.2%} of {len(trying.y):,} samples "
            f"are right, at {cost:.1%} of the plain model's work."
        )
        return pictures.as_svg(figure, "curve"), text

    def keep_risk(percent):
        if percent is None:
            return gr.skip(), gr.skip()
        try:
            # Moving the threshold draws the curve.
            return trying.threshold_for(percent / 100, _STEP)
        # The samples were trained on, for one.
        except ValueError as error:
            return gr.skip(), str(error)

    def switch(is_on):
        if is_on:
            trying.split.restore()
            return "The cloud worker is reachable."
        trying.split.cut_off()
        return (
            "The cloud worker is gone: what the edge would send on is answered "
            "by its last exit."
        )

    gallery = [np.asarray(images.to_picture(trying.x[k])) for k in chosen]
    low, high = trying.threshold_range
    first = curve()
    with gr.Blocks(analytics_enabled=False, title="Early exits") as page:
        gr.Markdown(
            f"# Early exits\n`{trying.model.name}` in two processes on this "
            "machine: an edge worker, which answers what it can, and a cloud "
            "worker for the rest."
        )
        with gr.Row():
            with gr.Column():
                with gr.Tab("Choose"):
                    samples = gr.Gallery(
                        gallery,
                        columns=6,
                        allow_preview=False,
                        show_label=False,
                        buttons=[],
                        interactive=False,
                        elem_id="ee-samples",
                    )
                    gr.Markdown("From easy to hard, by the exit they leave at.")
                if is_gray:
                    with gr.Tab("Draw"):
                        canvas = gr.Sketchpad(
                            type="pil",
                            canvas_size=(_CANVAS, _CANVAS),
                            fixed_canvas=True,
                            height=_CANVAS + 120,
                            layers=False,
                            transforms=(),
                            brush=gr.Brush(
                                default_size=28,
                                colors=["#000000"],
                                default_color="#000000",
                                color_mode="fixed",
                            ),
                            show_label=False,
                            elem_id="ee-canvas",
                        )
                        read = gr.Button("Answer", elem_id="ee-read")
                with gr.Tab("Upload"):
                    upload = gr.Image(
                        type="pil",
                        sources=["upload", "clipboard"],
                        show_label=False,
                        elem_id="ee-upload",
                    )
            with gr.Column():
                outcome = gr.HTML(render(None, _HELLO), elem_id="ee-outcome")
                cloud = gr.Checkbox(
                    True, label="Cloud reachable", elem_id="ee-cloud"
                )
                state = gr.Markdown("", elem_id="ee-state")
        with gr.Row():
            with gr.Column():
                threshold = gr.Slider(
                    low,
                    high,
                    round(trying.threshold, 3),
                    step=_STEP,
                    label="Threshold of the early exits",
                    elem_id="ee-threshold",
                )
                figures = gr.Markdown(first[1], elem_id="ee-figures")
                if trying.has_risks:
                    risk = gr.Slider(
                        0.5,
                        20,
                        2,
                        step=0.5,
                        label="Or: what early exits may cost in accuracy, %",
                        elem_id="ee-risk",
                    )
                    promise = gr.Markdown("", elem_id="ee-promise")
            with gr.Column():
                drawn = gr.HTML(first[0], elem_id="ee-curve")
        # Private: the page is for people.
        hidden = {"api_visibility": "private", "show_progress": "minimal"}
        samples.select(pick, None, outcome, **hidden)
        if is_gray:
            read.click(read_drawing, canvas, outcome, **hidden)
        upload.change(read_upload, upload, outcome, **hidden)
        last = {**hidden, "show_progress": "hidden"}
        last["trigger_mode"] = "always_last"
        threshold.change(move, threshold, [drawn, figures], **last)
        if trying.has_risks:
            risk.change(keep_risk, risk, [threshold, promise], **last)
        cloud.input(switch, cloud, state, **hidden)
    return page


def style():
    """What `gradio.mount_gradio_app` needs for the looks of the page."""
    import gradio as gr

    theme = gr.themes.Base(
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css_paths": [_HERE / "page.css"]}


def _renderer():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("outcome.html")

    def render(outcome, note=""):
        return template.render(outcome=outcome, note=note)

    return render
