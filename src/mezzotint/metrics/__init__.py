"""Measuring instruments: what the evidence is made with.

* `bootstrap`: intervals of means and of paired differences over prompts x seeds;
* `frechet`: Frechet distance on features, its floor and its paired bootstrap;
* `distances`: kernel (MMD) and energy distance between two samples;
* `similarity`: RMSE, PSNR, SSIM and cosine, one number a picture;
* `scene_accuracy`: parsed pictures against the scene graphs that were asked for;
* `parser`: the network that reads a picture back into a scene graph;
* `edge_prediction`: EPViT, the network that says which attribute belongs to which object;
* `text_similarity`: CLIPScore with encoders of this world;
* `ranking`: area under the ROC curve and its interval.

Import the module that is needed: this package imports none of them, so that a user of one does not pay for all.
"""
